"""``init`` for images."""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ssl_weighting.app.init.choice import (
    LOOKED_AT,
    Choice,
    backbone_part,
    data_part,
    make_a_pool,
    set_up,
)
from ssl_weighting.app.init.columns import LABELS, PATHS, choose_columns
from ssl_weighting.app.init.encoders import SIDE, image_encoder, normalisation
from ssl_weighting.app.init.frozen import frozen_recipe, use_frozen
from ssl_weighting.app.init.timing import choose_steps
from ssl_weighting.app.threads import free_cores
from ssl_weighting.backbones.base import Backbone
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.backbones.wide_resnet import WideResNet
from ssl_weighting.data.image_reading import say
from ssl_weighting.data.module import SSLData
from ssl_weighting.errors import UserError

HARDLY_CLASSES = {
    **dict.fromkeys(
        ("unlabeled", "unlabeledpool", "unlabeleddata", "unlabeledimages", "pool"), "--unlabelled"
    ),
    **dict.fromkeys(("test", "val", "validation", "valid", "holdout", "heldout"), "--test"),
    "train": "--images",
    "training": "--images",
}
"""Names of folders beside those of classes, of letters alone, and the option that each is rather for."""


def choose_for_images(
    source: Path,
    pool: Path | None,
    test: Path | None,
    columns: Mapping[str, str | None],
    flip: bool,
    device: str,
    encoder: str | None = None,
    drop_test_leaks: bool = False,
) -> tuple[Choice, SSLData]:
    """Look at somebody's images.

    Args:
        source: Folder or table of labelled images.
        pool: Folder of the unlabelled ones, or nothing.
        test: As ``source``, or nothing.
        columns: Names of a table's columns by option, as far as they were given.
        flip: Whether a mirrored image keeps its class.
        device: ``cpu`` or ``cuda``.
        encoder: Folder or name of a pretrained encoder; ``None`` for the best that is to be had, or none.
        drop_test_leaks: Whether near duplicates of test images are left out of the pool.

    Returns:
        The choices, and the data set as the recipe will have it, split.

    Raises:
        UserError: If the images are of no use, or there is no such encoder.
    """
    from ssl_weighting.data.images import KEPT_BYTES, Images

    if source.is_dir():
        _look_for_parts(source, [path.resolve() for path in (pool, test) if path is not None])
    paths = {"labeled": source, "unlabeled": pool, "test": test}
    choice = Choice({key: str(path.resolve()) for key, path in paths.items() if path is not None})
    tables = {"--images": source, "--test": test}
    choose_columns(
        choice,
        (PATHS, LABELS),
        columns,
        {option: path for option, path in tables.items() if path is not None and path.is_file()},
    )
    named = {key: choice.data[key] for key in ("path_column", "label_column") if key in choice.data}
    first = Images(source, pool, test, **named)
    found = image_encoder(encoder)
    sides = _sides([file.path for file in first.given])
    size = SIDE[device] if found is not None else _image_size(sides, device, choice)
    choice.data |= {"size": size, "flip": flip, "num_validation": 0}
    choice.data |= {"drop_test_leaks": True} if drop_test_leaks else {}
    why = (
        "as told"
        if flip
        else "a mirrored 2 is no 2; --flip if a mirrored image keeps its class, as of animals"
    )
    choice.note("flip", str(flip).lower(), why)
    if found is not None:
        choice.data["normalise_by"] = normalisation(found.backbone)
        choice.note(
            "encoder",
            found.written[1]["name"],
            "frozen; as given" if encoder else "frozen; the best to be had",
        )
        choice.note("size", size, f"what such encoders see well on a {device.upper()}")
    labels = first.distinct_labels()
    if not (labels == -1).any():
        make_a_pool(choice, labels[labels >= 0], "--unlabelled DIR", given=pool is not None)
    module = Images(**choice.data, split_seed=0)
    set_up(module, choice)
    if module.levels is not None:
        choice.data["levels"] = [int(level) if level.is_integer() else level for level in module.levels]
    kept = len(module.sets["unlabeled"]) * 3 * size**2 <= KEPT_BYTES
    choice.data["num_workers"] = 0 if kept else max(1, free_cores() // 2)
    if found is not None:
        use_frozen(choice, found, module, device)
        return choice, module
    backbone = _image_backbone(choice, device)
    labeled, unlabeled = (32, 64) if device == "cpu" else (64, 320)
    choice.data |= {"labeled_batch_size": labeled, "unlabeled_batch_size": unlabeled}
    images = torch.rand(labeled + 2 * unlabeled, 3, size, size)
    choose_steps(choice, backbone, images, device)
    return choice, module


def _look_for_parts(source: Path, given: Sequence[Path]) -> None:
    """Refuse a pool among the folders of the classes, and name others that are hardly classes.

    Args:
        source: The folder of the classes' folders.
        given: Folders that are other parts.

    Raises:
        UserError: Naming the option for the pool.
    """
    for folder in sorted(source.iterdir()):
        plain = re.sub(r"[^a-z]", "", folder.name.lower()).replace("unlabelled", "unlabeled")
        if plain not in HARDLY_CLASSES or not folder.is_dir() or folder.resolve() in given:
            continue
        what, where = f"--images {source}: its folder {folder.name!r}", shlex.quote(str(folder))
        option = HARDLY_CLASSES[plain]
        if plain.startswith("unlabeled"):
            raise UserError(
                f"{what} would be a class; if it is the pool, type {option} {where}, else rename it"
            )
        say(f"{what} is read as a class; if it is none, type {option} {where}")


def _sides(paths: list[str]) -> list[int]:
    """Shorter sides, in pixels, of some images, spread over the list."""
    from PIL import Image

    from ssl_weighting.image_pixels import FORMATS, quiet

    sides = []
    for path in paths[:: max(1, len(paths) // LOOKED_AT)]:
        try:
            with quiet(), Image.open(path, formats=FORMATS) as image:
                sides.append(min(image.size))
        except Exception:  # the data set will say which cannot be read
            continue
    return sides or [32]


def _image_size(sides: list[int], device: str, choice: Choice) -> int:
    """Pixels a side for a network that is trained from scratch."""
    side = int(statistics.median(sides))
    largest = 24 if device == "cpu" else 32 if side < 48 else 64
    size = min(largest, max(8, side // 2 * 2))
    why = f"images of about {side} pixels"
    choice.note(
        "size", size, why if size >= side - 1 else f"{why}; small ones train in minutes on a {device.upper()}"
    )
    return size


def _image_backbone(choice: Choice, device: str) -> Backbone:
    missing = "no pretrained encoder is to be had; --encoder FOLDER|NAME with one is far better and done in a minute"
    if device == "cuda":
        choice.backbone = ("WideResNet", {"batchnorm_momentum": 0.1})
        choice.note("network", "WRN-28-2", f"trained from scratch: {missing}")
        return WideResNet(batchnorm_momentum=0.1)
    channels = (16, 32, 64, 128)
    choice.backbone = ("SmallConvNet", {"channels": channels})
    choice.note("network", "SmallConvNet", f"trained from scratch: {missing}")
    return SmallConvNet(channels=channels)


def image_recipe(choice: Choice, module: SSLData, split: Path, sizes: dict[str, int]) -> str:
    """The text of a recipe for images."""
    if choice.backbone[1].get("frozen"):
        return frozen_recipe(choice, module, split, sizes)
    arguments = choice.data | {"split": str(split)}
    return f"""\
# Images of {module.num_classes} classes, {sizes["labeled"]} labels, all of which train; UDA with per-example weights
# Written by `ssl-weighting init`. Start it with `ssl-weighting fit --config` and this file.
{data_part("Images", arguments, sizes)}
    # flip: true if mirrored images keep their class, unlike letters, digits, left and right shoes
    # size: larger shows more and takes longer, by its square
model:
{backbone_part(choice)}
  algorithm:
    class_path: UDA # or FixMatch, FlexMatch, ...: see docs/methods.md
  labeled_augmentation: # without it, few pictures are learned by heart, by their colours
    - class_path: ssl_weighting.augment.RandAugment
      init_args: {{policy: uda}}
  influence:
    class_path: RelativeInfluence # compares with the labelled examples; the paper's: ExactLastLayer
    init_args: {{damping: 0.1}}
  theta:
    optimizer:
      class_path: torch.optim.SGD
      init_args: {{lr: 0.03, momentum: 0.9, nesterov: true, weight_decay: 0.0005}}
    ema_decay: 0.95 # short runs want a short memory
  # The weights λ: a short run visits each example only some ten times, so they move often and far.
  weighting:
    kind: per_example # fixed: the plain method, for comparison
    inner_steps: 2
    warmup_steps: {choice.steps // 8}
    optimizer: sgd
    lr: 0.3
    update_masked: true
    bounds: [0, 2] # as in the authors' code
trainer:
  max_steps: {choice.steps} # more is better, and takes longer
  val_check_interval: {max(1, choice.steps // 4)}
  precision: auto # bf16-mixed where the machine has units for it, else float32
"""
