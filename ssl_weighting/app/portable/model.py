"""An exported model, ready to use: ``ssl_weighting.load(FOLDER)``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ssl_weighting.app.portable.formats import FILES, Compute, read_onnx, read_program, read_safetensors
from ssl_weighting.app.portable.inputs import InputOptions
from ssl_weighting.errors import UserError, one_line

DESCRIPTION = "model.json"
"""What an exported folder is known by."""
VERSION = 1
"""Of the folder's form."""


class PortableModel:
    """The model of an exported folder, whatever its format.

    Args:
        folder: The folder.
        device: Where to compute; default: a GPU, if there is one.

    Raises:
        UserError: If the folder is damaged, or of a later version.
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        self.folder = folder
        content = _described(folder)
        try:
            self.format = str(content["format"])
            self.class_names = [str(name) for name in content["classes"]]
            self.inputs = InputOptions.of_json(content["inputs"])
            self._compute = self._computing(content["network"], device)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise _damaged(folder, error) from None

    def _computing(self, network: dict[str, Any], device: str | None) -> Compute:
        if self.format == "onnx":
            return read_onnx(self.folder, device)
        if self.format == "torch":
            return read_program(self.folder)
        if self.format not in FILES:
            raise ValueError(f"format {self.format}")
        from ssl_weighting.app.portable.network import Architecture

        return read_safetensors(self.folder, Architecture(**network), device)

    def probabilities(self, examples: Any) -> np.ndarray:
        """Class probabilities of examples of any number.

        Args:
            examples: What the run's data set takes: a list of texts; of paths of images; an array or a tensor (n, ...).

        Returns:
            float32 (n, C), in the order of the examples.

        Raises:
            UserError: If they are something else, or one cannot be read.
        """
        if isinstance(examples, (list, tuple)) and not examples:
            return np.empty((0, len(self.class_names)), np.float32)
        count, batches = self.inputs.batches(examples, self.folder)
        found = np.empty((count, len(self.class_names)), np.float32)
        for rows, arrays in batches:
            found[rows] = self._compute(arrays)
        return found

    def predict(self, examples: Any) -> list[str]:
        """The likeliest class of each example, by name. See `probabilities`."""
        return [self.class_names[best] for best in self.probabilities(examples).argmax(-1)]


def is_portable(folder: Path) -> bool:
    """Whether a folder was exported."""
    return (folder / DESCRIPTION).is_file()


def load_portable(folder: Path, device: str | None = None) -> PortableModel:
    """The model of an exported folder; see :class:`PortableModel`.

    Raises:
        UserError: See there; and of a torch program, since reading one may run code.
    """
    if _described(folder).get("format") == "torch":
        raise UserError(
            f'run="{folder}": holds a program of torch, and to read one may run code; if you trust where it is from, its '
            "README.md says how; else export with --format safetensors"
        )
    return PortableModel(folder, device)


def write_description(
    folder: Path, file_format: str, classes: list[str], inputs: InputOptions, network: Any
) -> None:
    """Write ``model.json``.

    Args:
        folder: The exported folder.
        file_format: See :data:`~ssl_weighting.app.portable.formats.FILES`.
        classes: Their names, in the order of the probabilities.
        inputs: What the model takes.
        network: An :class:`~ssl_weighting.app.portable.network.Architecture`, or ``None`` where a graph says it all.
    """
    content = {
        "version": VERSION,
        "format": file_format,
        "classes": classes,
        "inputs": inputs.to_json(),
        "network": {} if network is None else asdict(network),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (folder / DESCRIPTION).write_text(f"{text}\n", encoding="utf-8")


def _described(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if int(content["version"]) > VERSION:
            raise UserError(f"{path}: of a later version of this program; pip install -U ssl-weighting")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from None
    return dict(content)


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder / DESCRIPTION}: damaged ({one_line(error)[:160]}); export the run anew")
