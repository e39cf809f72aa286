"""``init`` for texts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from ssl_weighting.app.init.choice import (
    LOOKED_AT,
    Choice,
    backbone_part,
    data_part,
    make_a_pool,
    set_up,
)
from ssl_weighting.app.init.columns import LABELS, TEXTS, choose_columns
from ssl_weighting.app.init.timing import choose_steps
from ssl_weighting.data.module import SSLData
from ssl_weighting.errors import UserError
from ssl_weighting.guards import check_vocabulary

ENCODERS = {"cpu": "sentence-transformers/all-MiniLM-L6-v2", "cuda": "bert-base-uncased"}


def choose_for_texts(
    source: Path, test: Path | None, columns: Mapping[str, str | None], encoder: str, device: str
) -> tuple[Choice, SSLData]:
    """Look at somebody's texts.

    Args:
        source: A table of texts and labels.
        test: As ``source``, or nothing.
        columns: Names of columns by option, as far as they were given.
        encoder: Hub name or folder.
        device: ``cpu`` or ``cuda``.

    Returns:
        The choices, and the data set as the recipe will have it, split.

    Raises:
        UserError: If the texts are of no use, or there is no such encoder.
    """
    from ssl_weighting.backbones.transformer import Transformer
    from ssl_weighting.data.text import Text

    if source.is_dir():
        raise UserError(
            f"--text {source}: a folder, and texts are a table; of images, type --images {quote(str(source))}"
        )
    for key, path in (("--text", source), ("--test", test)):
        if path is not None and not path.is_file():
            raise UserError(f"{key} {path}: no such file")
    if Path(encoder).is_dir():
        encoder = str(Path(encoder).resolve())
    else:
        _require_hub(encoder)
    choice = Choice({"train": str(source.resolve())} | ({"test": str(test.resolve())} if test else {}))
    choose_columns(choice, (TEXTS, LABELS), columns, {"--text": source, "--test": test})
    choice.note(
        "encoder", encoder, "as given" if encoder not in ENCODERS.values() else f"fit for a {device.upper()}"
    )
    arguments: dict[str, Any] = {"name": encoder}
    if encoder.startswith("sentence-transformers/") or Path(encoder, "modules.json").is_file():
        arguments["pooling"] = "mean"
        choice.note("pooling", "mean", "a sentence encoder, which is trained for it")
    if device == "cpu":
        arguments["frozen_layers"] = _layers_of(encoder) * 2 // 3
        if arguments["frozen_layers"]:
            why = "keep what they know: a step takes half the time"
            choice.note("frozen layers", arguments["frozen_layers"], why)
    choice.backbone = ("Transformer", arguments)
    backbone = Transformer(**arguments)
    first = Text(**choice.data, tokenizer=encoder)
    texts, labels = first.read(train=True).texts, first.distinct_labels()
    if not (labels == -1).any():
        make_a_pool(
            choice,
            labels[labels >= 0],
            "rows with an empty label",
            given=bool((first.read(train=True).labels < 0).any()),
        )
    words = [len(text.as_py().split()) for text in texts[:: max(1, len(texts) // LOOKED_AT)]]
    pieces = 1.4 * statistics.quantiles(words, n=20)[-1] + 2 if len(words) > 1 else 64.0
    length = int(min(128 if device == "cpu" else 256, max(16, 8 * round(pieces / 8))))
    choice.data["max_length"] = length
    choice.note(
        "max_length",
        length,
        f"word pieces; half of the texts have up to {int(statistics.median(words))} words",
    )
    module = Text(**choice.data, tokenizer=encoder, split_seed=0)
    set_up(module, choice)
    check_vocabulary(backbone, module)
    labeled, unlabeled = (8, 16) if device == "cpu" else (32, 96)
    choice.data |= {
        "labeled_batch_size": labeled,
        "unlabeled_batch_size": unlabeled,
        "evaluation_batch_size": 100,
    }
    # Half of the longest is about what padding to the longest of a batch comes to.
    ids = torch.ones(labeled + 2 * unlabeled, max(8, length // 2), dtype=torch.int64)
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    choose_steps(choice, backbone, tokens, device, "text")
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
    import huggingface_hub  # slow to import

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


def text_recipe(choice: Choice, module: SSLData, split: Path, sizes: dict[str, int]) -> str:
    """The text of a recipe for texts."""
    arguments = choice.data | {"split": str(split)}
    return f"""\
# Texts of {module.num_classes} classes, {sizes["labeled"] + sizes["validation"]} labels; UDA with per-example weights
# Written by `ssl-weighting init`. Start it with `ssl-weighting fit --config` and this file.
{data_part("Text", arguments, sizes)}
model:
{backbone_part(choice)}
  algorithm:
    class_path: UDA
    # tf_idf replaces words that say little; back_translation compares with paraphrases: docs/own-data.md
    init_args: {{threshold: null, temperature: 1, strong: [tf_idf]}}
  influence:
    class_path: ExactLastLayer
    init_args: {{damping: reference_code}}
  theta:
    optimizer:
      class_path: torch.optim.AdamW
      init_args: {{lr: 1.0e-4, weight_decay: 0.01}}
    schedule: linear
    lr_warmup_steps: {choice.steps // 10}
    clip_norm: 1
    ema_decay: 0
  # The weights λ: a short run visits each example only a few times, so they move often and far.
  weighting:
    kind: per_example # fixed: the plain method, for comparison
    inner_steps: 2
    warmup_steps: {choice.steps // 8}
    optimizer: sgd
    lr: 0.5
    bounds: [0, 2] # as in the authors' code
trainer:
  max_steps: {choice.steps} # more is better, and takes longer
  val_check_interval: {max(1, choice.steps // 4)}
  precision: auto # bf16-mixed where the machine has units for it, else float32
"""
