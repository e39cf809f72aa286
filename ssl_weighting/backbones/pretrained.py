"""Networks of the ``transformers`` library: how they are loaded, and which of their layers come last."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from ssl_weighting.errors import UserError
from ssl_weighting.files import not_loaded

FILES = "config.json and a whole model.safetensors"


def load_encoder(
    name: str,
    layers: int | None = None,
    what: str = "encoder",
    optional: Collection[str] = (),
    **options: Any,
) -> tuple[Any, set[str]]:
    """A pretrained network by ``transformers.AutoModel``: from safetensors alone, without running code of its own.

    Args:
        name: A folder, or a name on the Hugging Face hub.
        layers: Keep only so many of the first layers.
        what: What it is, for messages.
        optional: Parts, by name, that its weights may lack.
        options: Further arguments of ``from_pretrained``.

    Returns:
        The network, and those of the optional parts that were not among the weights.

    Raises:
        UserError: If it cannot be had, or its weights are not whole.
    """
    from transformers import AutoModel  # slow to import

    _quiet()
    name = os.path.expanduser(name)
    try:
        encoder, report = AutoModel.from_pretrained(
            name,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **({} if layers is None else {"num_hidden_layers": layers}),
            **options,
        )
    except Exception as error:  # the libraries beneath raise whatever a damaged file makes of them
        raise not_loaded("model.backbone.name", name, error, what, FILES) from None
    keys = sorted(report["missing_keys"])
    missing = [key for key in keys if not any(part in key for part in optional)]
    if missing:
        hint = (
            f"give a whole {what}"
            if layers is None
            else f"is model.backbone.layers={layers} more than it has?"
        )
        raise UserError(
            f"model.backbone.name={name}: its weights lack {missing[0]} and {len(missing) - 1} more; {hint}"
        )
    return encoder, {part for part in optional if any(part in key for key in keys)}


def load_config(name: str, what: str = "encoder") -> Any:
    """The configuration of a pretrained network.

    Raises:
        UserError: If it cannot be had.
    """
    from transformers import AutoConfig

    _quiet()
    name = os.path.expanduser(name)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise not_loaded("model.backbone.name", name, error, what, FILES) from None


def preprocessing(name: str) -> dict[str, Any]:
    """What a folder or the hub says of how images are prepared for a network; empty where nothing is said."""
    from transformers.utils import cached_file

    for file in ("preprocessor_config.json", "processor_config.json"):
        try:
            path = cached_file(os.path.expanduser(name), file, _raise_exceptions_for_missing_entries=False)
            if path is not None:
                with open(path, encoding="utf-8") as opened:
                    content = json.load(opened)
                found = content.get("image_processor", content)
                if isinstance(found, dict) and "image_mean" in found:
                    return found
        except (OSError, ValueError, AttributeError):  # it is a help, not a need
            continue
    return {}


def freeze_first_layers(encoder: nn.Module, count: int) -> None:
    """Keep the weights of the first layers, and of the embeddings before them.

    Raises:
        UserError: If there are not more layers than that.
    """
    name, stack = layers_of(encoder)
    if not 0 <= count < len(stack):
        raise UserError(
            f"model.backbone.frozen_layers={count}: must be at least 0 and below {len(stack)}, the "
            "encoder's number of layers"
        )
    if count:
        for own, parameter in encoder.named_parameters():
            if own.startswith(f"{name}.{count}."):
                break
            parameter.requires_grad_(False)


def add_lora(encoder: nn.Module, rank: int | None, first: int, frozen: bool) -> None:
    """Train additions of low rank to the linear layers of the encoder's layers, and nothing else of it.

    LoRA (Hu et al. 2022): W x + 2 B A x, A of shape (rank, in) drawn at random and B of shape (out, rank) zero.

    Args:
        encoder: Is changed.
        rank: ``None`` for no such additions.
        first: Layers before this one get none.
        frozen: Whether the encoder is not to be trained at all.

    Raises:
        UserError: If the rank is none, or peft is not installed.
    """
    if rank is None:
        return
    option = f"model.backbone.lora_rank={rank}"
    if rank < 1:
        raise UserError(f"{option}: must be at least 1, or null for none")
    if frozen:
        raise UserError(f"{option}: has no effect on a frozen encoder; give --model.backbone.frozen false")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError(f"{option}: peft is not installed; pip install 'ssl-weighting[peft]'") from None
    name, stack = layers_of(encoder)
    targets = [
        f"{name}.{number}.{own}"
        for number in range(first, len(stack))
        for own, layer in stack[number].named_modules()
        if isinstance(layer, nn.Linear)
    ]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), encoder)


def layers_of(encoder: nn.Module) -> tuple[str, nn.ModuleList]:
    """The encoder's list of layers, the largest there is, with its name."""
    lists = [(name, m) for name, m in encoder.named_modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))


def last_layer(encoder: nn.Module) -> str:
    """Regular expression for the parameters of the last layer and of all that follows it, below ``encoder``."""
    layers, stack = layers_of(encoder)
    names = [f"encoder.{n}" for n, _ in encoder.named_parameters()]
    first = f"encoder.{layers}.{len(stack) - 1}."
    following = names[next(i for i, n in enumerate(names) if n.startswith(first)) :]
    others = sorted({n for n in following if not n.startswith(first)})
    return "|".join([re.escape(first), *map(re.escape, others), r"pooler\."])


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
