"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ssl_weighting.errors import UnwritableError, UserError

UNUSABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
)
"""Numbers of faults that lie in a path or its disk, not in the program."""


def home_path(path: str | Path) -> Path:
    """A path as it was typed, with ``~`` as the home folder: shells expand it in some places only."""
    return Path(os.path.expanduser(path))


def check_utf8(path: str | Path, key: str) -> None:
    """Refuse a path that recipes, splits and tables, which are UTF-8, cannot hold.

    Args:
        path: As it was typed, or in full.
        key: The option that names it, for the message.

    Raises:
        UserError: If it is made of other bytes.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        printable = str(path).encode(errors="backslashreplace").decode()
        raise UserError(
            f"{key}={printable}: holds bytes that are no UTF-8; rename that folder or file"
        ) from None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path, in full, beside ``path`` to write to; it takes ``path``'s name, synced, when the block ends well.

    A crash leaves the file that was there before.

    Raises:
        UnwritableError: No room, no permission.
    """
    # In full: pyarrow takes a path that begins with `name:` for an address.
    partial = Path(os.path.abspath(path)).with_name(f".{_short(path.name)}.partial")
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
        reason = os.strerror(error.errno or 0)
        raise UnwritableError(
            f"{path}: cannot be written ({reason}); what was there before is kept"
        ) from error
    finally:
        with suppress(OSError):  # where nothing can be deleted, nothing was written
            partial.unlink(missing_ok=True)


def _short(name: str) -> str:
    """A name that leaves room for an ending; file systems take 255 bytes."""
    return name if len(os.fsencode(name)) <= 240 else hashlib.sha256(os.fsencode(name)).hexdigest()[:32]


def not_loaded(option: str, name: str, error: Exception, what: str, files: str) -> UserError:
    """Why a pretrained part cannot be had, and what to do.

    Args:
        option: What named it.
        name: A folder, or a name on the Hugging Face hub.
        error: What came of reading it.
        what: What it is.
        files: What such a folder holds.
    """
    if pointer := git_lfs_pointer(name):
        return UserError(
            f"{option}={name}: its {pointer} is a pointer of git-lfs, not the file itself; get it with `git lfs pull`"
        )
    reason = " ".join(f"{type(error).__name__}: {error}".split()).split(". ")[0]
    return UserError(
        f"{option}={name}: no {what} to be had ({reason[:160]}); give a folder that holds {files}, or a name on the "
        "Hugging Face hub while the network is there"
    )


def git_lfs_pointer(folder: str) -> str | None:
    """Name of the first file in a folder that git-lfs has not fetched; ``None`` if there is none, or no such folder."""
    files = sorted(path for path in Path(folder).glob("*") if path.is_file()) if Path(folder).is_dir() else []
    for path in files:
        with path.open("rb") as file:
            if file.read(40).startswith(b"version https://git-lfs."):
                return path.name
    return None
