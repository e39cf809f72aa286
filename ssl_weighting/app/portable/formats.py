"""The three ways to keep a network in a folder, and to compute with what is kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_weighting.errors import UserError, one_line

if TYPE_CHECKING:  # onnxruntime computes without torch
    from torch import Tensor, nn

    from ssl_weighting.app.portable.network import Architecture, Network

Compute = Callable[[Sequence[np.ndarray]], np.ndarray]
"""What the model takes for B examples, to their probabilities (B, C) float32."""

FILES = {"safetensors": "model.safetensors", "onnx": "model.onnx", "torch": "model.pt2"}
"""The file of each format."""
NAMES = {"images": ("images",), "arrays": ("arrays",), "texts": ("input_ids", "attention_mask")}
"""What a graph's inputs are called, by the kind of examples."""
LARGEST_IN_ONE = 1_800_000_000
"""Bytes of weights up to which an ONNX model is one file: protobuf ends at 2 GiB."""


def need_onnx(*modules: str) -> None:
    """Refuse where what makes or runs ONNX is not installed.

    Raises:
        UserError: Saying how to get it.
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"onnx: {', '.join(missing)} {verb} not installed; pip install 'ssl-weighting[onnx]'")


def write_safetensors(network: Network, folder: Path) -> None:
    """Weights as they are; those of a pretrained encoder by its own library, in a folder of their own."""
    from safetensors.torch import save_file

    from ssl_weighting.app.portable.network import ENCODER, pretrained_of

    inner, apart = pretrained_of(network.backbone), network.kept_apart
    if inner is not None:
        inner.config._name_or_path = ""  # else the folder says where it was on this machine
        inner.save_pretrained(folder / ENCODER, safe_serialization=True)
    state = {
        name: value.contiguous().clone()
        for name, value in network.state_dict().items()
        if not name.startswith(apart)
    }
    save_file(state, folder / FILES["safetensors"])


def read_safetensors(folder: Path, architecture: Architecture, device: str | None) -> Compute:
    """What computes with the network that a folder holds.

    Args:
        folder: The folder.
        architecture: What to build.
        device: Where to compute; default: a GPU, if there is one.

    Raises:
        UserError: If the weights are damaged, or another network's.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _there(folder, "safetensors")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    network = architecture.network(folder)
    dtypes = {value.dtype for name, value in state.items() if name.startswith("classifier.heads.")}
    if len(dtypes) == 1:
        network.to(dtypes.pop())
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:  # other shapes
        raise _damaged(path, error) from None
    if wrong := [*unexpected, *(name for name in missing if not name.startswith(network.kept_apart))]:
        raise UserError(
            f"{path}: not of the network that model.json tells of ({wrong[0]} and {len(wrong) - 1} more); export the "
            "run anew"
        )
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return of_module(network.to(device), device)


def read_onnx(folder: Path, device: str | None) -> Compute:
    """What computes with a folder's ONNX graph.

    Args:
        folder: The folder.
        device: ``cpu``; default: the best that onnxruntime has.

    Raises:
        UserError: If onnxruntime is not installed, or the graph is damaged.
    """
    need_onnx("onnxruntime")
    import onnxruntime

    path = _there(folder, "onnx")
    if device not in (None, "cpu"):
        raise UserError(f"device={device}: onnxruntime chooses by itself; give cpu, or leave it out")
    providers = ["CPUExecutionProvider"] if device else onnxruntime.get_available_providers()
    try:
        session = onnxruntime.InferenceSession(path, providers=providers)
    except Exception as error:  # its errors have no common type
        raise _damaged(path, error) from None
    names = [one.name for one in session.get_inputs()]
    return lambda arrays: np.asarray(session.run(None, dict(zip(names, arrays, strict=True)))[0])


def read_program(folder: Path) -> Compute:
    """What computes with a folder's program, on the CPU. Of one's own alone: reading a program may run code."""
    import torch

    program = torch.export.load(_there(folder, "torch"))
    return of_module(program.module(), "cpu")


def of_module(network: nn.Module, device: str) -> Compute:
    """What computes with a network that is on a device."""
    import torch

    def compute(arrays: Sequence[np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            found: Tensor = network(*(torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays))
        return found.cpu().numpy()

    return compute


def write_graph(
    network: Network, folder: Path, file_format: str, kind: str, arrays: Sequence[np.ndarray], longest: int
) -> None:
    """A network as a graph of operations, of batches of any size, by ``torch.export``; as it is, or as ONNX.

    Args:
        network: The network, on the CPU.
        folder: Where it goes.
        file_format: ``onnx`` or ``torch``.
        kind: Of the examples: see :data:`NAMES`.
        arrays: A batch of what it takes; at least two examples.
        longest: Of texts, the most word pieces, which any number up to it may follow.
    """
    import torch

    dynamic = {0: torch.export.Dim("batch", min=1)}
    if kind == "texts":
        dynamic[1] = torch.export.Dim("pieces", min=2, max=longest)
    given = tuple(torch.from_numpy(array) for array in arrays)
    shapes = tuple(dynamic for _ in given)
    path = folder / FILES[file_format]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        program = torch.export.export(network, given, dynamic_shapes=shapes, strict=False)
        if file_format == "torch":
            program.example_inputs = None  # type: ignore[assignment]  # nobody needs them
            torch.export.save(program, path)
            return
        size = sum(value.nbytes for value in network.state_dict().values())
        torch.onnx.export(
            program,
            (),
            path,
            input_names=list(NAMES[kind]),
            output_names=["probabilities"],
            dynamo=True,
            optimize=True,
            verbose=False,
            external_data=size > LARGEST_IN_ONE,
        )


def _there(folder: Path, file_format: str) -> Path:
    path = folder / FILES[file_format]
    if not path.is_file():
        raise UserError(f"{path}: no such file; export the run anew")
    return path


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: damaged ({one_line(error)[:160]}); export the run anew")
