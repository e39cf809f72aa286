"""All images of a set, looked at before anything is trained: what is wrong with them is said or refused here."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_weighting.data.image_files import ImageFile, first_few, printable
from ssl_weighting.errors import DataWarning, UserError
from ssl_weighting.image_pixels import (
    DeepImageError,
    Levels,
    attempt,
    has_16_bit_colours,
    is_flat,
    levels_of,
    quiet,
    some_values,
)

T = TypeVar("T")
LOOKED_AT = 1000
"""Images that are looked at, spread over the set, where all would be too many."""

Seen = np.ndarray | Exception | None
"""Pixels; what is wrong; or nothing, of a file whose pixels are not wanted yet."""


class ImageReader:
    """Looks at every file of a set.

    Args:
        size: Height and width that the images get.
        levels: Values that become black and white in images of more than 8 bits, if anybody has said so.
        keep: Whether the pixels are decoded now, and not only the files opened.
        strict: Whether any file that cannot be read is refused, and not only one with a label.
        may_choose: Whether ``levels`` are chosen here where they are missing and needed.
        fate: What becomes of files that cannot be read, for the warning.
    """

    def __init__(
        self,
        size: int,
        levels: Levels | None,
        keep: bool,
        strict: bool,
        may_choose: bool,
        fate: str = "are left out",
    ) -> None:
        self.size, self.levels, self.keep = size, levels, keep
        self.strict, self.may_choose, self.fate = strict, may_choose, fate

    def read(self, files: Sequence[ImageFile], key: str, what: str) -> tuple[list[ImageFile], Tensor | None]:
        """The files that can be read, and their pixels uint8 (n, 3, size, size), if they are kept.

        Args:
            files: The files.
            key: The option that they were given by.
            what: Key and value.

        Raises:
            UserError: If one cannot be read that has to be, or none can.
        """
        with _threads() as threads:
            seen = list(threads.map(self._attempt, files))
            deep = [row for row, result in enumerate(seen) if isinstance(result, DeepImageError)]
            if deep and self.may_choose:
                self._choose_levels([files[row] for row in deep], threads)
                again = threads.map(self._attempt, [files[row] for row in deep])
                for row, result in zip(deep, again, strict=True):
                    seen[row] = result
        if deep and self.levels is not None:
            self._say_levels(len(deep), len(files))
        pairs = list(zip(files, seen, strict=True))
        self._refuse_or_say_bad(
            [(f, result) for f, result in pairs if isinstance(result, Exception)], files, key
        )
        good = [(file, result) for file, result in pairs if not isinstance(result, Exception)]
        if not good:
            raise UserError(f"{what}: none of its images can be read")
        self._say_odd(good, "data" if self.may_choose else key)
        pixels = [result for _, result in good if result is not None]
        return [file for file, _ in good], torch.from_numpy(np.stack(pixels)) if self.keep else None

    def _attempt(self, file: ImageFile) -> Seen:
        return attempt(file.path, self.size, self.keep, self.levels)

    def _choose_levels(self, deep: Sequence[ImageFile], threads: Executor) -> None:
        self.levels = levels_of(list(threads.map(lambda file: some_values(file.path), _spread(deep))))

    def _say_levels(self, deep: int, everything: int) -> None:
        assert self.levels is not None
        others = (
            f"; the other {everything - deep} have 8 bits and stay as they are: is one kind brighter?"
            if deep < everything
            else ""
        )
        say(
            f"data.levels: {deep} of {everything} images hold more than 8 bits a pixel; values from {self.levels[0]:g} "
            f"to {self.levels[1]:g} become 0 to 255 in all of them{others}"
        )

    def _refuse_or_say_bad(
        self, bad: list[tuple[ImageFile, Exception]], files: Sequence[ImageFile], key: str
    ) -> None:
        fatal = [(file, error) for file, error in bad if self.strict or file.label >= 0]
        if fatal:
            raise UserError(
                f"{key}: {len(fatal)} of its images cannot be read ({_reason(fatal[0][1])}): "
                f"{_listed([file for file, _ in fatal])}; repair or remove them"
            )
        if bad:
            say(
                f"{len(bad)} of {len(files)} images cannot be read and {self.fate} (the first: {_reason(bad[0][1])}): "
                f"{_listed([file for file, _ in bad], 50)}"
            )

    def _say_odd(self, good: Sequence[tuple[ImageFile, np.ndarray | None]], key: str) -> None:
        """Name images that show nothing, or less than they hold; of very many, look at some."""
        with _threads() as threads:
            some = [file for file, _ in _spread(good)]
            shallow = _those(some, lambda file: has_16_bit_colours(file.path), threads)
            if not self.keep:
                decoded = threads.map(lambda file: attempt(file.path, self.size, True, self.levels), some)
                good = [(f, p) for f, p in zip(some, decoded, strict=True) if isinstance(p, np.ndarray)]
        if shallow:
            say(
                f"{key}: {len(shallow)} of {len(some)} images hold 16 bits a colour, of which the upper 8 are seen: "
                f"{_listed(shallow)}; convert them to 8 bits if they are dark"
            )
        flat = [file for file, pixels in good if pixels is not None and is_flat(pixels)]
        if flat:
            hint = "" if self.levels is None else "; data.levels says which values become black and white"
            say(
                f"{key}: {len(flat)} of {len(good)} images are of one colour all over and show nothing: "
                f"{_listed(flat)}; look at them{hint}"
            )


def say(*notes: str) -> None:
    """Tell a person about their data, a warning each."""
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=2)


@contextmanager
def _threads() -> Iterator[Executor]:
    """Threads to decode in: Pillow lets go of the interpreter's lock."""
    Image.init()  # finding the decoders is not safe among threads
    with quiet(), ThreadPoolExecutor(os.cpu_count()) as threads:
        yield threads


def _those(
    files: Sequence[ImageFile], condition: Callable[[ImageFile], bool], threads: Executor
) -> list[ImageFile]:
    return [file for file, holds in zip(files, threads.map(condition, files), strict=True) if holds]


def _spread(items: Sequence[T]) -> Sequence[T]:
    """All of a list, or some :data:`LOOKED_AT` of a long one."""
    return items[:: max(1, len(items) // LOOKED_AT)]


def _reason(error: Exception) -> str:
    """What is wrong with a file, in a few words."""
    plain = isinstance(error, (ValueError, FileNotFoundError)) and str(error)
    return str(error) if plain else type(error).__name__


def _listed(files: Sequence[ImageFile], most: int = 5) -> str:
    return first_few([printable(file.name) for file in files], most)
