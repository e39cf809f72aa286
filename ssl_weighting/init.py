"""``ssl-weighting init``: look at somebody's data, and write a recipe and a split that run as they are."""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ssl_weighting.backbones.base import Backbone
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.backbones.torchvision_model import TorchvisionModel
from ssl_weighting.backbones.wide_resnet import WideResNet
from ssl_weighting.data.base import SSLData
from ssl_weighting.data.split import validation_shares, write_split
from ssl_weighting.errors import UserError
from ssl_weighting.files import whole_file

SECONDS = {"cpu": 200.0, "cuda": 600.0}
"""What a run may take."""
FEWEST, MOST = {"images": 600, "text": 200}, {"cpu": 1000, "cuda": 20_000}
"""θ steps."""
WHOLE = {"images": 1.6, "text": 2.8}
"""Time of training ÷ that of a step's passes: Λ steps, views, optimiser; partly frozen encoders spend it on forwards."""
ENCODERS = {"cpu": "sentence-transformers/all-MiniLM-L6-v2", "cuda": "bert-base-uncased"}
FEW_TO_COMPARE = 10
"""Validation examples below which single ones say too little."""
LOOKED_AT = 300
"""Images or texts whose size is looked at."""


@dataclass
class Choice:
    """A recipe in the making.

    Attributes:
        data: Arguments of the data set.
        backbone: The network's, as it stands in the recipe.
        steps: θ steps.
        notes: What was chosen, and why.
    """

    data: dict[str, Any]
    backbone: tuple[str, dict[str, Any]] = ("", {})
    steps: int = 0
    notes: list[tuple[str, str, str]] = field(default_factory=list)

    def note(self, what: str, value: object, why: str) -> None:
        """Remember a choice, to be told."""
        self.notes.append((what, str(value), why))


def main(argv: list[str]) -> int:
    """Write a recipe and a split for somebody's data.

    Args:
        argv: ``--images DIR`` or ``--text FILE``, and options; ``--help`` lists them.

    Returns:
        The exit status, 0.

    Raises:
        UserError: If the data is of no use, or a file is there already.
    """
    parser = argparse.ArgumentParser(prog="ssl-weighting init", description=__doc__, allow_abbrev=False)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--images", type=Path, metavar="DIR", help="a folder a class, or a table of path and label"
    )
    data.add_argument(
        "--text", type=Path, metavar="FILE", help="a table of text and label; empty labels are the pool"
    )
    parser.add_argument(
        "--unlabelled", "--unlabeled", type=Path, metavar="DIR", help="the pool: a folder of images"
    )
    parser.add_argument(
        "--flip", action="store_true", help="a mirrored image keeps its class: not letters, digits, arrows"
    )
    parser.add_argument("--test", type=Path, metavar="PATH", help="test examples, as --images or --text")
    parser.add_argument("--encoder", help="text: name on the Hugging Face hub, or folder, of the encoder")
    parser.add_argument("--out", type=Path, metavar="RECIPE", help="default: the data's name, .yaml")
    options = parser.parse_args(argv)
    if options.text and options.unlabelled:
        parser.error("--unlabelled is for images; in a table of texts, leave the pool's labels empty")
    if options.images and options.encoder:
        parser.error("--encoder is for texts")
    if options.text and options.flip:
        parser.error("--flip is for images")
    source: Path = options.images or options.text
    recipe = options.out or Path(f"{source.resolve().stem}.yaml")
    split = recipe.with_suffix(".split.json")
    if recipe.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {recipe}: must end in .yaml")
    if not recipe.resolve().parent.is_dir():
        raise UserError(f"--out {recipe}: there is no folder {recipe.resolve().parent}")
    _refuse_to_overwrite(recipe, split)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.images:
        choice, module = _images(source, options.unlabelled, options.test, options.flip, device)
        body = _image_recipe
    else:
        choice, module = _texts(source, options.test, options.encoder or ENCODERS[device], device)
        body = _text_recipe
    assert module.split is not None
    sizes = {part: len(module.sets[part]) for part in ("labeled", "validation", "unlabeled")}
    text = body(choice, module, split.resolve(), sizes)
    _refuse_to_overwrite(recipe, split)
    write_split(module.split, split)
    with whole_file(recipe) as partial:
        partial.write_text(text, encoding="utf-8")
    _tell(choice, recipe, split)
    return 0


def _refuse_to_overwrite(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise UserError(f"--out: {path} is there already; give another name, or move it away")


# ---- images -------------------------------------------------------------------------------------------------


def _images(
    source: Path, pool: Path | None, test: Path | None, flip: bool, device: str
) -> tuple[Choice, SSLData]:
    from ssl_weighting.data.images import KEPT_BYTES, Images

    paths = {"labeled": source, "unlabeled": pool, "test": test}
    choice = Choice({key: str(path.resolve()) for key, path in paths.items() if path is not None})
    first = Images(source, pool, test)
    sides = _sides([file.path for file in first.given])
    size, pretrained = _image_size(sides, device, choice)
    choice.data |= {"size": size, "flip": flip}
    why = (
        "as told"
        if flip
        else "a mirrored 2 is no 2; --flip if a mirrored image keeps its class, as of animals"
    )
    choice.note("flip", str(flip).lower(), why)
    if pretrained:
        choice.data["normalise_by"] = "imagenet"
    if pool is None and all(file.label >= 0 for file in first.given):
        _make_a_pool(choice, torch.tensor([file.label for file in first.given]))
    module = Images(**choice.data, split_seed=0)
    _set_up(module, choice)
    kept = sum(len(module.sets[part]) for part in ("validation", "unlabeled")) * 3 * size**2 <= KEPT_BYTES
    choice.data["num_workers"] = 0 if kept else max(1, (os.cpu_count() or 1) // 2)
    backbone = _image_backbone(choice, pretrained, device)
    labeled, unlabeled = (32, 64) if device == "cpu" else (64, 320)
    if pretrained:
        labeled, unlabeled = labeled // 2, unlabeled // 2
    choice.data |= {"labeled_batch_size": labeled, "unlabeled_batch_size": unlabeled}
    images = torch.rand(labeled + 2 * unlabeled, 3, size, size)
    _choose_steps(choice, backbone, images, device, "images")
    return choice, module


def _sides(paths: list[str]) -> list[int]:
    """Shorter sides, in pixels, of some images, spread over the list."""
    from PIL import Image

    from ssl_weighting.data.images import FORMATS

    sides = []
    for path in paths[:: max(1, len(paths) // LOOKED_AT)]:
        try:
            with Image.open(path, formats=FORMATS) as image:
                sides.append(min(image.size))
        except Exception:  # the data set will say which cannot be read
            continue
    return sides or [32]


def _image_size(sides: list[int], device: str, choice: Choice) -> tuple[int, bool]:
    """Pixels a side, and whether a pretrained network is to be had and of use."""
    side = int(statistics.median(sides))
    if side >= 64 and _pretrained_weights():
        size = 64 if device == "cpu" else 128 if side < 200 else 224
        choice.note(
            "size", size, f"images of about {side} pixels, a pretrained network, and a {device.upper()}"
        )
        return size, True
    largest = 24 if device == "cpu" else 32 if side < 48 else 64
    size = min(largest, max(8, side // 2 * 2))
    why = f"images of about {side} pixels"
    choice.note(
        "size", size, why if size >= side - 1 else f"{why}; small ones train in minutes on a {device.upper()}"
    )
    return size, False


def _pretrained_weights() -> bool:
    """Whether ResNet-18's weights lie in torch's cache, or can be downloaded now (45 MB)."""
    from torchvision.models import ResNet18_Weights

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        ResNet18_Weights.DEFAULT.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError):
        return False
    finally:
        socket.setdefaulttimeout(before)
    return True


def _image_backbone(choice: Choice, pretrained: bool, device: str) -> Backbone:
    if pretrained:
        choice.backbone = ("TorchvisionModel", {"name": "resnet18", "weights": "DEFAULT"})
        choice.note("network", "ResNet-18", "pretrained on ImageNet; the weights are there")
        return TorchvisionModel("resnet18", "DEFAULT")
    if device == "cuda":
        choice.backbone = ("WideResNet", {"batchnorm_momentum": 0.1})
        choice.note("network", "WRN-28-2", "the semi-supervised papers' network, on a GPU")
        return WideResNet(batchnorm_momentum=0.1)
    channels = (16, 32, 64, 128)
    choice.backbone = ("SmallConvNet", {"channels": channels})
    choice.note("network", "SmallConvNet", "trains from scratch in minutes on a CPU")
    return SmallConvNet(channels=channels)


def _image_recipe(choice: Choice, module: SSLData, split: Path, sizes: dict[str, int]) -> str:
    arguments = choice.data | {"split": str(split)}
    rate = 0.01 if "weights" in choice.backbone[1] else 0.03
    return f"""\
# Images of {module.num_classes} classes, {sizes["labeled"] + sizes["validation"]} labels; UDA with per-example weights
# Written by `ssl-weighting init`. Start it with `ssl-weighting fit --config` and this file.
{_data_part("Images", arguments, sizes)}
    # flip: true if mirrored images keep their class, unlike letters, digits, left and right shoes
    # size: larger shows more and takes longer, by its square
model:
{_backbone_part(choice)}
  algorithm:
    class_path: UDA # or FixMatch, FlexMatch, ...: see docs/methods.md
  labeled_augmentation: # without it, few pictures are learned by heart, by their colours
    - class_path: ssl_weighting.augment.RandAugment
      init_args: {{policy: uda}}
{_influence_part(sizes["validation"])}
  optimizer:
    class_path: torch.optim.SGD
    init_args: {{lr: {rate}, momentum: 0.9, nesterov: true, weight_decay: 0.0005}}
  # The weights λ: a short run visits each example only some ten times, so they move often and far.
  weighting: per_example # fixed: the plain method, for comparison
  inner_steps: 2
  warmup_steps: {choice.steps // 8}
  weight_optimizer: sgd
  weight_lr: 0.3
  update_masked: true
  weight_bounds: [0, 2] # as in the authors' code
  ema_decay: 0.95 # short runs want a short memory
trainer:
  max_steps: {choice.steps} # more is better, and takes longer
  val_check_interval: {max(1, choice.steps // 4)}
"""


# ---- texts --------------------------------------------------------------------------------------------------


def _texts(source: Path, test: Path | None, encoder: str, device: str) -> tuple[Choice, SSLData]:
    from ssl_weighting.backbones.transformer import Transformer
    from ssl_weighting.data.text import Text

    for key, path in (("--text", source), ("--test", test)):
        if path is not None and not path.is_file():
            raise UserError(f"{key} {path}: no such file")
    if Path(encoder).is_dir():
        encoder = str(Path(encoder).resolve())
    else:
        _require_hub(encoder)
    choice = Choice({"train": str(source.resolve())} | ({"test": str(test.resolve())} if test else {}))
    choice.note(
        "encoder", encoder, "as given" if encoder not in ENCODERS.values() else f"fit for a {device.upper()}"
    )
    arguments: dict[str, Any] = {"name": encoder}
    if encoder.startswith("sentence-transformers/") or Path(encoder, "modules.json").is_file():
        arguments["pooling"] = "mean"
        choice.note("pooling", "mean", "a sentence encoder, which is trained for it")
    if device == "cpu":
        arguments["frozen_layers"] = _layers_of(encoder) * 2 // 3
        choice.note(
            "frozen layers", arguments["frozen_layers"], "keep what they know: a step takes half the time"
        )
    choice.backbone = ("Transformer", arguments)
    backbone = Transformer(**arguments)
    first = Text(choice.data["train"], tokenizer=encoder)
    labels = first.read(train=True)
    if bool((labels.labels >= 0).all()):
        _make_a_pool(choice, labels.labels)
    words = [len(text.as_py().split()) for text in labels.texts[:: max(1, len(labels.texts) // LOOKED_AT)]]
    pieces = 1.4 * statistics.quantiles(words, n=20)[-1] + 2 if len(words) > 1 else 64.0
    length = int(min(128 if device == "cpu" else 256, max(16, 8 * round(pieces / 8))))
    choice.data["max_length"] = length
    choice.note(
        "max_length",
        length,
        f"word pieces; half of the texts have up to {int(statistics.median(words))} words",
    )
    module = Text(**choice.data, tokenizer=encoder, split_seed=0)
    _set_up(module, choice)
    labeled, unlabeled = (8, 16) if device == "cpu" else (32, 96)
    choice.data |= {
        "labeled_batch_size": labeled,
        "unlabeled_batch_size": unlabeled,
        "evaluation_batch_size": 100,
    }
    # Half of the longest is about what padding to the longest of a batch comes to.
    ids = torch.ones(labeled + 2 * unlabeled, max(8, length // 2), dtype=torch.int64)
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    _choose_steps(choice, backbone, tokens, device, "text")
    return choice, module


def _layers_of(encoder: str) -> int:
    """Number of an encoder's layers; 0 if its configuration does not say."""
    from transformers import AutoConfig

    try:
        return int(getattr(AutoConfig.from_pretrained(encoder), "num_hidden_layers", 0))
    except (OSError, ValueError):  # the encoder itself will say what is wrong
        return 0


def _require_hub(encoder: str) -> None:
    """Refuse at once an encoder that is not on this machine while there is no network: transformers tries for minutes.

    Raises:
        UserError: With what to do instead.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError("--text: needs the text extra: pip install 'ssl-weighting[text]'") from error
    if Path(encoder).is_absolute():
        raise UserError(f"--encoder {encoder}: no such folder")
    if huggingface_hub.try_to_load_from_cache(encoder, "config.json") is not None:
        return
    try:
        huggingface_hub.HfApi().model_info(encoder, timeout=10)
    except huggingface_hub.errors.HfHubHTTPError:
        return  # the hub answers; what it says is told when the encoder is read
    except Exception as error:  # its client's kinds of a missing network change from version to version
        raise UserError(
            f"--encoder {encoder}: not on this machine, and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}); give --encoder a folder that holds config.json, model.safetensors and the "
            "tokenizer's files"
        ) from None


def _text_recipe(choice: Choice, module: SSLData, split: Path, sizes: dict[str, int]) -> str:
    arguments = choice.data | {"split": str(split)}
    return f"""\
# Texts of {module.num_classes} classes, {sizes["labeled"] + sizes["validation"]} labels; UDA with per-example weights
# Written by `ssl-weighting init`. Start it with `ssl-weighting fit --config` and this file.
{_data_part("Text", arguments, sizes)}
model:
{_backbone_part(choice)}
  algorithm:
    class_path: UDA
    # tf_idf replaces words that say little; back_translation compares with paraphrases: docs/own-data.md
    init_args: {{threshold: null, temperature: 1, strong: [tf_idf]}}
  influence:
    class_path: ExactLastLayer
    init_args: {{damping: reference_code}}
  optimizer:
    class_path: torch.optim.AdamW
    init_args: {{lr: 1.0e-4, weight_decay: 0.01}}
  schedule: linear
  lr_warmup_steps: {choice.steps // 10}
  clip_norm: 1
  ema_decay: 0
  # The weights λ: a short run visits each example only a few times, so they move often and far.
  weighting: per_example # fixed: the plain method, for comparison
  inner_steps: 2
  warmup_steps: {choice.steps // 8}
  weight_optimizer: sgd
  weight_lr: 0.5
  weight_bounds: [0, 2] # as in the authors' code
trainer:
  max_steps: {choice.steps} # more is better, and takes longer
  val_check_interval: {max(1, choice.steps // 4)}
"""


def _influence_part(validation: int) -> str:
    """The influence that finds what does not belong; the paper's, where too few examples validate to compare with."""
    if validation < FEW_TO_COMPARE:
        return "  influence:\n    class_path: ExactLastLayer\n    init_args: {damping: reference_code}"
    return "  influence:\n    class_path: RelativeInfluence # the paper's: ExactLastLayer; see docs/choosing-a-solver.md"


# ---- both ---------------------------------------------------------------------------------------------------


def _make_a_pool(choice: Choice, labels: Tensor) -> None:
    """All examples have a label and there is no pool: most labels are put aside, as if they were not known."""
    counts = labels.bincount()
    left = int(counts.sum() - validation_shares(counts).sum())
    choice.data["num_labeled"] = min(max(4 * len(counts), left // 4), max(len(counts), left // 2))
    choice.note(
        "num_labeled",
        choice.data["num_labeled"],
        "no pool was given: examples beyond these are it, labels unseen",
    )


def _set_up(module: SSLData, choice: Choice) -> None:
    """Load and split, and note what there is."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        module.prepare_data()
        module.setup("fit")
        if module.has_test:
            module.setup("test")
    found = {part: len(examples) for part, examples in module.sets.items()}
    names = module.class_names
    listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    choice.note("classes", module.num_classes, listed)
    choice.note("labelled", found["labeled"], "to train on")
    per_class = module.sets["validation"].labels.bincount(minlength=module.num_classes)
    few = [name for name, count in zip(names, per_class.tolist(), strict=False) if count < 3]
    why = "labels kept aside, which the weights are learned on"
    choice.note(
        "validation",
        found["validation"],
        why + (f"; fewer than 3 for {', '.join(few[:5])}: label more" if few else ""),
    )
    choice.note(
        "unlabelled", found["unlabeled"], "the pool, each with a weight; labelled examples among them"
    )
    without = (
        "none given: the validation error is all there is, and it is too kind, the weights were learned on it"
    )
    choice.note("test", found.get("test", 0), "tested once, at the end" if "test" in found else without)
    for warning in said:
        if issubclass(warning.category, UserWarning) and "left out" in str(warning.message):
            choice.note("left out", "", str(warning.message))


def _choose_steps(choice: Choice, backbone: Backbone, inputs: Any, device: str, kind: str) -> None:
    """As many θ steps as the time allows, by timing the network on one step's examples."""
    seconds = _seconds(backbone.to(device).train(), _on(inputs, device), device)
    each = WHOLE[kind] * seconds
    steps = min(MOST[device], max(FEWEST[kind], int(SECONDS[device] / each) // 50 * 50))
    choice.steps = steps
    choice.note(
        "max_steps", steps, f"a step takes some {each:.2g} s here, the whole about {_minutes(steps * each)}"
    )


def _on(inputs: Any, device: str) -> Any:
    return {k: v.to(device) for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.to(device)


def _seconds(network: nn.Module, inputs: Any, device: str) -> float:
    """Shortest of three passes forward and back; the first warms up."""

    def once() -> float:
        started = time.perf_counter()
        network(inputs).sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    return min(once() for _ in range(2))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _data_part(kind: str, arguments: dict[str, Any], sizes: dict[str, int]) -> str:
    lines = [f"    {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items()]
    comment = (
        f"{sizes['labeled']} labelled, {sizes['validation']} validation, {sizes['unlabeled']} unlabelled"
    )
    lines[-1] += f" # {comment}; without it, one is drawn by the seed"
    return "\n".join(["data:", f"  class_path: {kind}", "  init_args:", *lines])


def _backbone_part(choice: Choice) -> str:
    name, arguments = choice.backbone
    lines = ["  backbone:", f"    class_path: {name}"]
    return "\n".join(
        [*lines, f"    init_args: {json.dumps(arguments, ensure_ascii=False)}"] if arguments else lines
    )


def _tell(choice: Choice, recipe: Path, split: Path) -> None:
    from rich.text import Text as Plain

    table = Table(title=f"{recipe}", title_justify="left", show_header=False)
    for what, value, why in choice.notes:
        table.add_row(Plain(what), Plain(value), Plain(why))
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"wrote {recipe} and {split}", highlight=False, markup=False)
    console.print(f"next: ssl-weighting fit --config {recipe}", highlight=False, markup=False)
