"""Images of one's own: folders, or a table of paths and labels."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ssl_weighting.augment import RandomFlipCrop
from ssl_weighting.data.base import ExampleSet, SSLData
from ssl_weighting.data.files import one_line
from ssl_weighting.data.tables import ENDINGS as TABLES
from ssl_weighting.data.tables import read_table
from ssl_weighting.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # no other decoder sees a file
KEPT_BYTES = 2**30
"""Sets up to this size are decoded once and kept in memory, as uint8."""


class ImageFile(NamedTuple):
    """One file.

    Attributes:
        path: Where it is.
        name: Where it is below the user's folder, with forward slashes: the same on every machine.
        label: Number of its class, −1 if unknown.
    """

    path: str
    name: str
    label: int


class ImageFiles:
    """A :class:`~ssl_weighting.data.base.Source` of image files: kept in memory, or decoded when they are fetched.

    Args:
        files: The files; all of them can be opened.
        size: Height and width of the images.
        pixels: uint8 (n, 3, size, size); ``None`` to decode when fetched.
    """

    def __init__(self, files: Sequence[ImageFile], size: int, pixels: Tensor | None) -> None:
        self.files, self.size, self.pixels = files, size, pixels
        self.labels = torch.tensor([file.label for file in files], dtype=torch.int64)

    def fetch(self, rows: Tensor) -> Tensor:
        """Images uint8 (B, 3, size, size). One whose pixels prove damaged is grey, with a warning: a long run goes on."""
        if self.pixels is not None:
            return self.pixels[rows]
        paths = [self.files[row].path for row in rows.tolist()]
        return torch.stack([decoded_or_grey(path, self.size, path) for path in paths])

    def checksum(self) -> str:
        """sha256 over names, sizes in bytes and labels; the files' contents are not read."""
        digest = hashlib.sha256(f"images {self.size}".encode())
        for file in self.files:
            digest.update(os.fsencode(f"{file.name}\0{os.path.getsize(file.path)}\0{file.label}\n"))
        return digest.hexdigest()

    def describe(self, rows: Tensor) -> list[str]:
        """The files' paths."""
        return [_printable(self.files[row].path) for row in rows.tolist()]


class Images(SSLData):
    """Images of one's own, of any size, format and number of classes.

    Files end in .jpg, .jpeg, .png, .webp, .bmp, .tif, .tiff or .gif (the first frame); others, and names that begin
    with a dot, are passed over. They are turned as their EXIF says, laid on white where they are transparent, made RGB,
    and scaled and cropped at the centre to ``size``. Up to 1 GiB of images are kept in memory; more of them are
    decoded as they are needed, by ``num_workers``.

    Unreadable files: a labelled or test image stops the run before it starts, since each of them counts; an image of
    the pool, or one to predict, is left out, with a warning. Both name the files.

    Without ``unlabeled``, and besides it, labelled images beyond ``num_labeled`` are in the pool.

    Args:
        labeled: A folder with a sub-folder, however deep, for every class; or a table (.csv, .tsv, .jsonl, .parquet)
            with the columns ``path``, relative to the table's folder and not out of it, and ``label``. A row without
            a label belongs to the pool.
        unlabeled: A folder of images, however deep: the pool. Files that are labelled or test images are left out.
        test: Test images, as ``labeled``.
        size: Height and width that the images get.
        flip: Whether a mirrored image keeps its class. False for letters and digits.
        normalise_by: ``range`` maps pixels to [−1, 1]; ``imagenet`` is what pretrained networks expect.
        predict_on: A folder of images, or one of the lists; default: the test images, if there are any, else the pool.
        num_labeled: See :class:`~ssl_weighting.data.base.SSLData`; default: all.
        num_validation: See :class:`~ssl_weighting.data.base.SSLData`; default: a share.
        evaluate_test: See :class:`~ssl_weighting.data.base.SSLData`.
        kwargs: See :class:`~ssl_weighting.data.base.SSLData`.

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
        normalise_by: Literal["range", "imagenet"] = "range",
        predict_on: Literal["test", "unlabeled", "validation"] | Path | None = None,
        num_labeled: int | None = None,
        num_validation: int | None = None,
        evaluate_test: bool = False,
        **kwargs: Any,
    ) -> None:
        if size < 8:
            raise UserError(f"data.size={size}: must be at least 8 pixels")
        labeled = Path(labeled).expanduser()
        self.size = size
        self.unlabeled = None if unlabeled is None else Path(unlabeled).expanduser()
        self.test = None if test is None else Path(test).expanduser()
        named = _classified(labeled, "data.labeled", self.unlabeled)
        self.all_class_names = _in_natural_order({label for _, _, label in named if label})
        if len(self.all_class_names) < 2:
            raise UserError(
                f"data.labeled={labeled}: holds {len(self.all_class_names)} class(es) "
                f"({', '.join(self.all_class_names)}); at least 2 are needed, a sub-folder each"
            )
        self.given = self._numbered(named, "data.labeled", labeled)
        self.augmentations = {"weak": RandomFlipCrop(padding=max(1, size // 8), flip=flip)}
        imagenet = normalise_by == "imagenet"
        self.mean = (0.485, 0.456, 0.406) if imagenet else (0.5, 0.5, 0.5)
        self.std = (0.229, 0.224, 0.225) if imagenet else (0.5, 0.5, 0.5)
        self.has_test = test is not None
        self.predict_folder = predict_on.expanduser() if isinstance(predict_on, Path) else None
        super().__init__(
            num_labeled=num_labeled,
            num_validation=num_validation,
            evaluate_test=evaluate_test,
            predict_on=None if isinstance(predict_on, Path) else predict_on,
            **kwargs,
        )

    def setup(self, stage: str | None = None) -> None:
        """See :class:`~ssl_weighting.data.base.SSLData`; also reads the folder to predict."""
        super().setup(stage)
        if stage == "predict" and self.predict_folder is not None:
            files = _found(self.predict_folder, "data.predict_on")
            source = self._read(files, "data.predict_on", self.predict_folder, strict=False)
            self.sets["given"] = ExampleSet(source, torch.arange(len(source.files)), source.labels)
            self.predict_on = "given"  # type: ignore[assignment]  # a list of our own

    def load(self, train: bool) -> ImageFiles:
        """All training images: the labelled ones, by name, then the pool, by name; or all test images."""
        if not train:
            assert self.test is not None
            named = _classified(self.test, "data.test", None)
            return self._read(
                self._numbered(named, "data.test", self.test), "data.test", self.test, strict=True
            )
        return self._read(self._training_files(), "data.labeled", self.unlabeled, strict=False)

    def _training_files(self) -> list[ImageFile]:
        if self.unlabeled is None:
            return self.given
        taken = {_identity(file.path) for file in self.given}
        if self.test is not None:
            taken |= {_identity(path) for path, _, _ in _classified(self.test, "data.test", None)}
        pool = _found(self.unlabeled, "data.unlabeled")
        fresh = [
            file._replace(name=f"unlabeled/{file.name}") for file in pool if _identity(file.path) not in taken
        ]
        if not fresh:
            raise UserError(f"data.unlabeled={self.unlabeled}: all of its images are labelled or test images")
        return [*self.given, *fresh]

    def _numbered(self, named: list[tuple[str, str, str]], key: str, where: Path) -> list[ImageFile]:
        numbers = {name: number for number, name in enumerate(self.all_class_names)} | {"": -1}
        strange = sorted({label for _, _, label in named} - {*numbers})
        if strange:
            raise UserError(
                f"{key}={where}: holds the classes {', '.join(strange[:5])}, which data.labeled does not have; "
                "rename or remove them"
            )
        return [ImageFile(path, name, numbers[label]) for path, name, label in named]

    def _read(self, files: list[ImageFile], key: str, where: Path | None, strict: bool) -> ImageFiles:
        """Look at every file, and at its pixels too where they are kept."""
        keep = len(files) * 3 * self.size**2 <= KEPT_BYTES
        Image.init()  # finding the decoders is not safe among threads
        with ThreadPoolExecutor(os.cpu_count()) as threads:  # Pillow lets go of the interpreter's lock
            seen = list(threads.map(lambda file: _attempt(file.path, self.size, keep), files))
        bad = [file for file, result in zip(files, seen, strict=True) if isinstance(result, str)]
        fatal = [file for file in bad if strict or file.label >= 0]
        if fatal:
            reason = next(result for result in seen if isinstance(result, str))
            raise UserError(
                f"{key}: {len(fatal)} of its images cannot be read ({reason}): {_listed(fatal)}; repair or remove them"
            )
        if bad:
            warnings.warn(
                f"{len(bad)} of {len(files)} images cannot be read and are left out: {_listed(bad, 50)}",
                stacklevel=2,
            )
        good = [pair for pair in zip(files, seen, strict=True) if not isinstance(pair[1], str)]
        if not good:
            raise UserError(f"{key}={where}: none of its images can be read")
        pixels = (
            torch.from_numpy(np.stack([result for _, result in good if isinstance(result, np.ndarray)]))
            if keep
            else None
        )
        return ImageFiles([file for file, _ in good], self.size, pixels)


def decoded_or_grey(file: str | os.PathLike[str] | BinaryIO, size: int, what: str) -> Tensor:
    """An image as uint8 (3, size, size); if it proves damaged, grey, with a warning that says ``what`` it is."""
    try:
        return torch.from_numpy(decode(file, size))
    except Exception as error:  # a damaged file can raise nearly anything
        warnings.warn(f"{what} is damaged and shown as grey ({one_line(error)})", stacklevel=2)
        return torch.full((3, size, size), 128, dtype=torch.uint8)


def decode(file: str | os.PathLike[str] | BinaryIO, size: int) -> np.ndarray:
    """An image as uint8 (3, size, size): upright, RGB, the shorter side scaled to ``size``, cropped at the centre.

    Raises:
        Exception: Nearly any, if the file is damaged.
    """
    with warnings.catch_warnings(), Image.open(file, formats=FORMATS) as image:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image.draft("RGB", (size, size))  # JPEG decodes small at once
        upright: Image.Image = ImageOps.exif_transpose(image)
        if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
            upright = _eight_bits(upright)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        square = ImageOps.fit(upright.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits, or of numbers in [0, 1], which Pillow would clip at 255."""
    levels = np.asarray(image, dtype=np.float64)
    top = 1.0 if image.mode == "F" and levels.max() <= 1 else 65535.0 if levels.max() > 255 else 255.0
    return Image.fromarray(np.rint(np.clip(levels / top, 0, 1) * 255).astype(np.uint8))


def _attempt(path: str, size: int, whole: bool) -> np.ndarray | str | None:
    """The pixels, or nothing if they are not wanted; or what is wrong with the file."""
    try:
        if whole:
            return decode(path, size)
        with Image.open(path, formats=FORMATS):
            return None
    except Exception as error:  # a damaged file can raise nearly anything
        return type(error).__name__


def _identity(path: str) -> tuple[int, int]:
    """The same for all names of a file."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _found(folder: Path, key: str) -> list[ImageFile]:
    """All images below a folder, without labels.

    Raises:
        UserError: If there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder")
    files = [ImageFile(str(path), path.relative_to(folder).as_posix(), -1) for path in _walk(folder)]
    if not files:
        raise UserError(f"{key}={folder}: holds no image ({', '.join(ENDINGS)})")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """Image files below a folder, in the order of their names, whatever the file system's is."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(names):
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                yield Path(here, name)


def _classified(where: Path, key: str, without: Path | None) -> list[tuple[str, str, str]]:
    """Paths, names and classes of labelled images; the class of an unlabelled row is empty."""
    if where.is_dir():
        rows = []
        for folder in sorted(where.iterdir()):
            hidden = folder.name.startswith((".", "__MACOSX"))
            if (
                hidden
                or not folder.is_dir()
                or (without is not None and without.resolve() == folder.resolve())
            ):
                continue
            inside = [
                (str(p), p.relative_to(where).as_posix(), _printable(folder.name)) for p in _walk(folder)
            ]
            if not inside:
                raise UserError(
                    f"{key}={where}: its folder {folder.name!r} holds no image; fill or remove it"
                )
            rows += inside
        if not rows:
            raise UserError(f"{key}={where}: holds no folders with images; make one a class")
        return rows
    if where.suffix.lower() not in TABLES:
        kind = (
            f"not a folder, nor a table ({', '.join(TABLES)})"
            if where.exists()
            else "no such folder or table"
        )
        raise UserError(f"{key}={where}: {kind}")
    table = read_table(str(where), key.removeprefix("data."), "path", "label", "name them path and label")
    return [
        (str(where.parent / _inside(path, where, key)), path, label or "")
        for path, label in zip(table["path"].to_pylist(), table["label"].to_pylist(), strict=True)
    ]


def _inside(path: str, table: Path, key: str) -> PurePosixPath:
    """A path of a table, if it does not lead out of the table's folder and there is a file."""
    inside = PurePosixPath(path)
    if not path or inside.is_absolute() or ".." in inside.parts:
        raise UserError(
            f"{key}={table}: the path {path!r} leads out of the table's folder; give paths below it, relative to it"
        )
    if not (table.parent / inside).is_file():
        raise UserError(
            f"{key}={table}: the file {path!r} is not in {table.parent}; complete it, or drop the row"
        )
    return inside


def _in_natural_order(names: set[str]) -> list[str]:
    """Class names sorted, whole numbers by value: 2 comes before 10."""
    return sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))


def _printable(name: str) -> str:
    """A file name that may not be UTF-8 as text that can be written."""
    return name.encode("utf-8", "backslashreplace").decode()


def _listed(files: list[ImageFile], most: int = 5) -> str:
    more = f" and {len(files) - most} more" if len(files) > most else ""
    return ", ".join(file.name for file in files[:most]) + more
