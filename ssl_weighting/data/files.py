"""Downloaded files: fetched whole or not at all, checked, and read without running anything in them."""

from __future__ import annotations

import pickle
import tempfile
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torchvision.datasets.utils import check_integrity, download_url

from ssl_weighting.errors import UserError, one_line


def check_md5(path: Path, md5: str, root: Path) -> None:
    """Compare a file with its official md5.

    Args:
        path: The file.
        md5: What it has to be.
        root: The user's ``data.root``, for messages.

    Raises:
        UserError: If they differ, or the file cannot be read.
    """
    try:
        same = check_integrity(path, md5)
    except OSError as error:
        raise UserError(f"data.root={root}: {path.name} cannot be read ({one_line(error)})") from None
    if not same:
        raise UserError(
            f"data.root={root}: {path.name} has not the official md5 {md5}; it is damaged (delete it and get "
            "it again) or not the original: --data.verify_checksum false for mirrors"
        )


def download(url: str, path: Path, md5: str, root: Path) -> None:
    """Download a file, whole and with the right md5 or not at all.

    Args:
        url: Where it is.
        path: Where it goes; folders are made.
        md5: What it has to be.
        root: The user's ``data.root``, for messages.

    Raises:
        UserError: If that is not possible, with what to do instead.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as folder:
            download_url(url, folder, path.name, md5)
            (Path(folder) / path.name).replace(path)
    except (OSError, HTTPException, RuntimeError) as error:
        raise UserError(
            f"data.root={root}: {path.name} is not there, and downloading {url} failed ({one_line(error)}); "
            f"get it by hand and put it at {path}"
        ) from None


class _Kind:
    """Stands for a ``numpy.dtype`` in a pickle."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment: nothing that matters for single bytes."""


class PickledArray:
    """Stands for a numpy array in a pickle: what the file says of it, to be checked before it is used.

    numpy's own ``__setstate__`` is not used: it was not written to withstand a hostile file.
    """

    def __init__(self, state: Any = ()) -> None:
        self.state = state

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self) -> np.ndarray:
        """The array, uint8, read only.

        Raises:
            ValueError: If it is not an array of bytes, or of another length than its shape says.
            TypeError: If it is no array at all.
        """
        _, shape, kind, fortran, content = self.state
        if not isinstance(kind, _Kind) or kind.code not in ("u1", "|u1", "uint8", "B"):
            raise ValueError(f"its array is of type {getattr(kind, 'code', kind)}, not of bytes")
        if isinstance(content, str):  # Python 2 has no bytes of its own: they come as latin1
            content = content.encode("latin1")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


class DataUnpickler(pickle.Unpickler):
    """Reads pickles of plain containers and byte arrays; refuses all others, and calls nothing they name.

    A pickle is a program that may call any function. Here the few names that numpy 1 and 2 write for an array
    lead to harmless stand-ins, every other name is an error.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name.

        Raises:
            pickle.UnpicklingError: If it has none.
        """
        # Made anew at each call, so that no file can leave something behind in them.
        match module.replace("numpy._core.", "numpy.core."), name:
            case "numpy.core.multiarray", "_reconstruct":
                return lambda *_: PickledArray()
            case "numpy.core.numeric", "_frombuffer":
                return lambda buffer, kind, shape, order: PickledArray((1, shape, kind, order == "F", buffer))
            case "numpy", "ndarray":
                return "ndarray"  # only ever an argument of the above
            case "numpy", "dtype":
                return lambda *arguments: _Kind(*arguments)
            case "_codecs", "encode":
                return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"a data file must not call {module}.{name}")
