"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ssl_weighting.errors import LocalError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it takes ``path``'s name, synced, when the block ends well.

    A crash leaves the file that was there before.

    Raises:
        LocalError: If it cannot be written: no room, no permission.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise LocalError(unwritable(path, error)) from error
    finally:
        with suppress(OSError):  # where nothing can be deleted, nothing was written
            partial.unlink(missing_ok=True)


def unwritable(path: Path | str, error: OSError) -> str:
    """One line about a file that cannot be written."""
    return (
        f"{path}: cannot be written ({os.strerror(error.errno or 0)}); what was there before is kept. Mend that, and "
        "ssl-weighting resume RUN goes on from the last checkpoint"
    )


def git_lfs_pointer(folder: str) -> str | None:
    """Name of the first file in a folder that git-lfs has not fetched; ``None`` if there is none, or no such folder."""
    files = sorted(path for path in Path(folder).glob("*") if path.is_file()) if Path(folder).is_dir() else []
    for path in files:
        with path.open("rb") as file:
            if file.read(40).startswith(b"version https://git-lfs."):
                return path.name
    return None
