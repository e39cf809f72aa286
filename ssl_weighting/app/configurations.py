"""Resolved configurations, compared: what of a run is changed, key by key, as a person types it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonargparse import Namespace

NOT_COMPARED = ("runs", "config", "ckpt_path", "data.split", "trainer.logger")
"""What says where a run happens or is reported in other words."""


def share_encoder_name(config: Namespace) -> None:
    """Texts are tokenised for the encoder that reads them, unless another tokenizer is named."""
    data = config.data.get("init_args") or {}
    encoder = (config.model.backbone.get("init_args") or {}).get("name")
    if "tokenizer" in data and data["tokenizer"] is None and encoder:
        config.data.init_args.tokenizer = encoder


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options that differ between two configurations, by the name that is typed: old value, new value.

    Of a plug-in that was changed for another, its name alone is reported: options of the two are not compared.

    Args:
        old: Nested mappings of plain values.
        new: The like.
    """
    return {
        key: values
        for key, values in _differing(old, new, "")
        if not any(key == skipped or key.startswith(f"{skipped}.") for skipped in NOT_COMPARED)
    }


def _differing(old: Any, new: Any, key: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        if old != new:
            yield key, (_plain(old), _plain(new))
        return
    names = [mapping.get("class_path") for mapping in (old, new)]
    if names[0] != names[1]:
        yield key, (_plain(old), _plain(new))
        return
    for name in dict.fromkeys((*old, *new)):
        inner = key if name == "init_args" else f"{key}.{name}" if key else str(name)
        yield from _differing(old.get(name), new.get(name), inner)


def _plain(value: Any) -> Any:
    """A plug-in by its class's name; other values as they are."""
    if isinstance(value, Mapping) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    return value


def summarised(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Changes in one line: ``model.algorithm FixMatch instead of UDA, trainer.max_steps 60 instead of 30``."""
    return ", ".join(f"{key} {_text(new)} instead of {_text(old)}" for key, (old, new) in changes.items())


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping | list | tuple) and len(str(value)) > 60:
        return "another"
    return str(value)
