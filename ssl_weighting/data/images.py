"""Images of one's own: folders, or a table of paths and labels."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from ssl_weighting.augment import RandomFlipCrop
from ssl_weighting.data.duplicates import Contents, find_copies, of_files, without_copies
from ssl_weighting.data.image_files import (
    ImageFile,
    NamedImage,
    all_images,
    classified,
    identity,
    in_natural_order,
    listed,
    printable,
)
from ssl_weighting.data.image_reading import ImageReader, say
from ssl_weighting.data.module import SSLData
from ssl_weighting.data.remembered import NewExamples, remembered
from ssl_weighting.data.source import Source
from ssl_weighting.errors import UserError, named
from ssl_weighting.files import home_path
from ssl_weighting.image_pixels import Levels, as_image, decoded_or_grey, quiet, thumbnail

KEPT_BYTES = 2**30
"""Sets up to this size are decoded once and kept in memory, as uint8."""


class ImageFiles:
    """A :class:`~ssl_weighting.data.source.Source` of image files: kept in memory, or decoded when they are fetched.

    Args:
        files: The files; all of them can be opened.
        size: Height and width of the images.
        pixels: uint8 (n, 3, size, size); ``None`` to decode when fetched.
        levels: Values that become black and white in images of more than 8 bits, if there are any.
    """

    def __init__(
        self, files: Sequence[ImageFile], size: int, pixels: Tensor | None, levels: Levels | None = None
    ) -> None:
        self.files, self.size, self.pixels, self.levels = files, size, pixels, levels
        self.labels = torch.tensor([file.label for file in files], dtype=torch.int64)

    def fetch(self, rows: Tensor) -> Tensor:
        """Images uint8 (B, 3, size, size). One whose pixels prove damaged is grey, with a warning: a long run goes on."""
        if self.pixels is not None:
            return self.pixels[rows]
        paths = [self.files[row].path for row in rows.tolist()]
        return torch.stack([decoded_or_grey(path, self.size, path, self.levels) for path in paths])

    def checksum(self) -> str:
        """sha256 over names, sizes in bytes and labels; the files' contents are not read."""
        digest = hashlib.sha256(b"images")
        for file in self.files:
            digest.update(os.fsencode(f"{file.name}\0{os.path.getsize(file.path)}\0{file.label}\n"))
        return digest.hexdigest()

    def identity(self) -> str:
        """sha256 over what the pixels are made of: paths, sizes and times of change, and how they are read."""
        result = hashlib.sha256(f"images {self.size} {self.levels}".encode())
        for file in self.files:
            state = os.stat(file.path)
            result.update(os.fsencode(f"{file.path}\0{state.st_size}\0{state.st_mtime_ns}\n"))
        return result.hexdigest()

    def describe(self, rows: Tensor) -> list[str]:
        """The files' paths."""
        return [printable(self.files[row].path) for row in rows.tolist()]

    @cached_property
    def folder(self) -> str:
        """The folder that all of the files lie in; nothing, if they have none in common."""
        try:
            folder = os.path.commonpath({os.path.dirname(file.path) for file in self.files})
        except ValueError:  # some paths are relative, or on another drive
            return ""
        return "" if os.path.dirname(folder) == folder else folder

    def names(self, rows: Tensor) -> list[str]:
        """The files' paths below ``folder``."""
        paths = [self.files[row].path for row in rows.tolist()]
        return [printable(os.path.relpath(path, self.folder) if self.folder else path) for path in paths]

    def thumbnails(self, rows: Tensor, side: int) -> list[Image.Image]:
        """The files as a person looks at them, no side beyond ``side``; of one that is gone, what was kept of it."""
        return [self._thumbnail(row, side) for row in rows.tolist()]

    def _thumbnail(self, row: int, side: int) -> Image.Image:
        try:
            with quiet():
                return thumbnail(self.files[row].path, side, self.levels)
        except Exception:  # a damaged file can raise nearly anything
            return as_image(self.fetch(torch.tensor([row]))[0])

    def contents(self) -> Contents:
        """The files, to be compared."""
        return of_files([file.path for file in self.files], [file.name for file in self.files], self.labels)


def read_images(
    where: Path, size: int, levels: Levels | None, key: str, path_column: str = "path"
) -> NewExamples:
    """Images to predict, of a folder, however deep, or of a table of paths.

    Args:
        where: The folder or table.
        size: Height and width that the images get.
        levels: Values that become black and white in images of more than 8 bits.
        key: What they were given as, for messages.
        path_column: Column of the paths, in tables.

    Raises:
        UserError: If there are none, or none can be read. Single ones that cannot are named in a warning.
    """
    notes: list[str] = []
    files = all_images(where, key, notes) if where.is_dir() else listed(where, key, path_column)
    say(*notes)
    keep = len(files) * 3 * size**2 <= KEPT_BYTES
    reader = ImageReader(size, levels, keep, strict=False, may_choose=False, fate="have an empty row")
    good, pixels = reader.read(files, key, named(key, where))
    rows = _places(good, files)
    return NewExamples([printable(file.path) for file in files], rows, ImageFiles(good, size, pixels, levels))


def _places(some: Sequence[ImageFile], files: Sequence[ImageFile]) -> Tensor:
    """Where some of the files stand among all, both in one order, (m,) int64; a file may stand there twice."""
    rows, left = [], iter(some)
    wanted = next(left, None)
    for row, file in enumerate(files):
        if file is wanted:
            rows.append(row)
            wanted = next(left, None)
    return torch.tensor(rows, dtype=torch.int64)


class Images(SSLData):
    """Images of one's own, of any size, format and number of classes.

    Files end in .jpg, .jpeg, .jpe, .jfif, .png, .webp, .bmp, .tif, .tiff or .gif (the first frame). Links are followed.
    Others, hidden files, and hidden and system folders (names that begin with . or @, and the likes of lost+found,
    __MACOSX, #recycle) are passed over, with a warning that counts them. Images are turned as their EXIF says, laid on
    white where they are transparent, made RGB, and scaled and cropped at the centre to ``size``. Up to 1 GiB of images
    are kept in memory; more of them are decoded as they are needed, by ``num_workers``.

    Grey images of more than 8 bits are seen in one range of values, ``levels``, the same for the whole set.

    Unreadable files, and those that hold NaN or infinity: a labelled or test image stops the run before it starts, since
    each of them counts; an image of the pool, or one to predict, is left out, with a warning. Both name the files.

    Copies, byte for byte: those of labelled images with the same label count once; images of the pool that are copies
    of labelled or test images are left out of it; a warning says so, and names test images that have a label in training.

    Without ``unlabeled``, and besides it, labelled images beyond ``num_labeled`` are in the pool.

    Args:
        labeled: A folder with a sub-folder, however deep, for every class; or a table (.csv, .tsv, .jsonl, .parquet)
            with columns of paths, relative to the table's folder or absolute, and of labels. A row without a label
            belongs to the pool. Classes are told apart by their names in Unicode's composed form.
        unlabeled: A folder of images, however deep: the pool. Files that are labelled or test images are left out. It
            may lie inside ``labeled``, as may ``test``, and is no class then.
        test: Test images, as ``labeled``.
        size: Height and width that the images get.
        flip: Whether a mirrored image keeps its class. False for letters and digits.
        levels: Values that become black and white in grey images of 16 or 32 bits or of floating-point numbers; default:
            the lowest and the highest of the training images, but for far outliers such as dead pixels.
        normalise_by: ``range`` maps pixels to [−1, 1]; ``imagenet`` is what pretrained networks expect.
        path_column: Column of the paths, in tables.
        label_column: Column of the labels, in tables.
        num_labeled: See :class:`~ssl_weighting.data.module.SSLData`; default: all.
        num_validation: See :class:`~ssl_weighting.data.module.SSLData`; default: a share.
        evaluate_test: See :class:`~ssl_weighting.data.module.SSLData`.
        kwargs: See :class:`~ssl_weighting.data.module.SSLData`.

    Raises:
        UserError: If a folder or table is missing or holds nothing of use, naming it.
    """

    name = "images"

    def __init__(
        self,
        labeled: Path,
        unlabeled: Path | None = None,
        test: Path | None = None,
        size: int = 32,
        flip: bool = True,
        levels: tuple[float, float] | None = None,
        normalise_by: Literal["range", "imagenet"] = "range",
        path_column: str = "path",
        label_column: str = "label",
        num_labeled: int | None = None,
        num_validation: int | None = None,
        evaluate_test: bool = False,
        **kwargs: Any,
    ) -> None:
        if size < 8:
            raise UserError(f"data.size={size}: must be at least 8 pixels")
        if levels is not None and not (all(map(math.isfinite, levels)) and levels[0] < levels[1]):
            raise UserError(f"data.levels={[*levels]}: must be two numbers, the lower one first")
        labeled = home_path(labeled)
        self.size, self.levels = size, levels
        self.unlabeled = None if unlabeled is None else home_path(unlabeled)
        self.test = None if test is None else home_path(test)
        self.labeled = labeled
        self.columns = (path_column, label_column)
        self._notes: list[str] = []
        known = remembered()
        others = [p for p in (self.unlabeled, self.test) if p is not None]
        named = [] if known else classified(labeled, "data.labeled", others, self._notes, self.columns)
        if known:
            self.all_class_names, self.levels = known["class_names"], levels or known["levels"]
        else:
            self.all_class_names = in_natural_order({file.label for file in named if file.label})
        if len(self.all_class_names) < 2:
            raise UserError(
                f"data.labeled={labeled}: holds {len(self.all_class_names)} class(es) "
                f"({', '.join(self.all_class_names)}); at least 2 are needed, a sub-folder each"
            )
        self.given = self._numbered(named, "data.labeled", labeled)
        self.augmentations = {"weak": RandomFlipCrop(padding=max(1, size // 8), flip=flip)}
        self.normalise_by, imagenet = normalise_by, normalise_by == "imagenet"
        self.mean = (0.485, 0.456, 0.406) if imagenet else (0.5, 0.5, 0.5)
        self.std = (0.229, 0.224, 0.225) if imagenet else (0.5, 0.5, 0.5)
        self.has_test = test is not None
        super().__init__(
            num_labeled=num_labeled,
            num_validation=num_validation,
            evaluate_test=evaluate_test,
            **kwargs,
        )

    def to_remember(self) -> dict[str, Any]:
        """See :class:`~ssl_weighting.data.module.SSLData`: the range of deep images, besides."""
        levels = None if self.levels is None else list(map(float, self.levels))
        return super().to_remember() | {"levels": levels}

    def read_new(self, where: Path, key: str = "--on") -> NewExamples:
        """A folder of images, however deep, or a table of paths; see :class:`~ssl_weighting.data.module.SSLData`."""
        return read_images(where, self.size, self.levels, key, self.columns[0])

    def source_of(self, examples: Any) -> Source:
        """Paths of images, or uint8 (n, 3, size, size); see :class:`~ssl_weighting.data.module.SSLData`."""
        if isinstance(examples, (list, tuple)) and all(isinstance(e, (str, Path)) for e in examples):
            files = [ImageFile(str(path), str(path), -1) for path in examples]
            good, pixels = ImageReader(
                self.size,
                self.levels,
                len(files) * 3 * self.size**2 <= KEPT_BYTES,
                strict=True,
                may_choose=False,
            ).read(files, "examples", "examples")
            return ImageFiles(good, self.size, pixels, self.levels)
        source = super().source_of(examples)
        first = source.fetch(torch.arange(min(1, len(source.labels))))
        if first.dtype != torch.uint8 or first.shape[1:] != (3, self.size, self.size):
            raise UserError(
                f"examples: {first.dtype} of shape (n, {', '.join(map(str, first.shape[1:]))}); give paths, or uint8 of "
                f"shape (n, 3, {self.size}, {self.size})"
            )
        return source

    def load(self, train: bool) -> ImageFiles:
        """All training images: the labelled ones, by name, then the pool, by name; or all test images."""
        if train:
            files = self.training_files()
            say(*self._notes)
            return self._read(files, "data.labeled", self.unlabeled, strict=False)
        assert self.test is not None
        notes: list[str] = []
        named = self._test_images(notes)
        say(*notes)
        return self._read(self._numbered(named, "data.test", self.test), "data.test", self.test, strict=True)

    def distinct_labels(self) -> Tensor:
        """Labels of the training images, (n,) int64, as a split is drawn by them; nothing is decoded for it."""
        train = ImageFiles(self.training_files(), self.size, None).contents()
        test = None
        if self.test is not None:
            numbered = self._numbered(self._test_images([]), "data.test", self.test)
            test = ImageFiles(numbered, self.size, None).contents()
        copies = find_copies(train, test, range(len(self.all_class_names)))
        return without_copies(train.labels, copies, train)

    def contents(self, source: Source) -> Contents | None:
        """See :class:`~ssl_weighting.data.module.SSLData`."""
        return source.contents() if isinstance(source, ImageFiles) else None

    def training_files(self) -> list[ImageFile]:
        """The labelled images, then those of the pool that are neither labelled nor test images."""
        if self.unlabeled is None:
            return self.given
        taken = {identity(file.path) for file in self.given}
        if self.test is not None:
            taken |= {identity(file.path) for file in self._test_images([])}
        notes: list[str] = []
        pool = all_images(self.unlabeled, "data.unlabeled", notes)
        fresh = [
            file._replace(name=f"unlabeled/{file.name}") for file in pool if identity(file.path) not in taken
        ]
        if not fresh:
            raise UserError(f"data.unlabeled={self.unlabeled}: all of its images are labelled or test images")
        if len(fresh) < len(pool):
            notes.append(
                f"data.unlabeled={self.unlabeled}: {len(pool) - len(fresh)} of its {len(pool)} images are labelled or "
                "test images themselves and left out of the pool"
            )
        self._notes += [note for note in notes if note not in self._notes]
        return [*self.given, *fresh]

    def _test_images(self, notes: list[str]) -> list[NamedImage]:
        assert self.test is not None
        others = [self.labeled, *([] if self.unlabeled is None else [self.unlabeled])]
        return classified(self.test, "data.test", others, notes, self.columns)

    def _numbered(self, named: list[NamedImage], key: str, where: Path) -> list[ImageFile]:
        numbers = {name: number for number, name in enumerate(self.all_class_names)} | {"": -1}
        unknown = sorted({file.label for file in named} - {*numbers})
        if unknown:
            raise UserError(
                f"{key}={where}: holds the classes {', '.join(unknown[:5])}, which data.labeled does not have; "
                "rename or remove them"
            )
        return [ImageFile(file.path, file.name, numbers[file.label]) for file in named]

    def _read(self, files: list[ImageFile], key: str, where: Path | None, strict: bool) -> ImageFiles:
        """Look at every file, and at its pixels too where they are kept; training images may decide the range."""
        keep = len(files) * 3 * self.size**2 <= KEPT_BYTES
        key_and_value = key if where is None else f"{key}={where}"
        reader = ImageReader(self.size, self.levels, keep, strict, may_choose=key == "data.labeled")
        good, pixels = reader.read(files, key, key_and_value)
        self.levels = reader.levels
        return ImageFiles(good, self.size, pixels, self.levels)
