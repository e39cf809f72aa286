"""Decoding of images, and the one range of values that deep images of a set are seen in."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ssl_weighting.errors import one_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # no other decoder sees a file
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
SAMPLED = 4096
"""Values of a deep image that are looked at, and twice as many at most."""
FLAT = 4
"""Levels, of 256, that the pixels of an image have to span if it shows anything."""

Levels = tuple[float, float]


class DeepImageError(ValueError):
    """An image holds more than 8 bits a pixel, and nobody has said which values are black and white."""


@contextmanager
def quiet() -> Iterator[None]:
    """No remarks of Pillow's about odd files. For the main thread, around all others: filters belong to the process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield


def decoded_or_grey(
    file: str | os.PathLike[str] | BinaryIO, size: int, what: str, levels: Levels | None
) -> Tensor:
    """An image as uint8 (3, size, size); if it proves damaged, grey, with a warning that says ``what`` it is."""
    try:
        with quiet():
            return torch.from_numpy(decode(file, size, levels))
    except Exception as error:  # a damaged file can raise nearly anything
        warnings.warn(f"{what} is damaged and shown as grey ({one_line(error)})", stacklevel=2)
        return torch.full((3, size, size), 128, dtype=torch.uint8)


def decode(file: str | os.PathLike[str] | BinaryIO, size: int, levels: Levels | None = None) -> np.ndarray:
    """An image as uint8 (3, size, size): upright, RGB, the shorter side scaled to ``size``, cropped at the centre.

    Args:
        file: The file, opened or by its path.
        size: Height and width.
        levels: Values that become black and white in a grey image of 16 or 32 bits, or of floating-point numbers.

    Raises:
        DeepImageError: If the image is such a one, and ``levels`` are missing.
        Exception: Nearly any, if the file is damaged.
    """
    square = ImageOps.fit(_upright(file, size, levels), (size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def thumbnail(
    file: str | os.PathLike[str] | BinaryIO, side: int, levels: Levels | None = None
) -> Image.Image:
    """A whole image as a person looks at it: upright, RGB, its longer side at most ``side`` pixels.

    Args:
        file: See :func:`decode`.
        side: Most pixels of the longer side.
        levels: See :func:`decode`.

    Raises:
        Exception: See :func:`decode`.
    """
    image = _upright(file, side, levels)
    image.thumbnail((side, side))
    return image


def as_image(pixels: Tensor) -> Image.Image:
    """Pixels uint8 (1 or 3, H, W) as an image."""
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).cpu().numpy())


def _upright(file: str | os.PathLike[str] | BinaryIO, size: int, levels: Levels | None) -> Image.Image:
    """An image upright, RGB, of its own size; a JPEG perhaps smaller, but not below ``size``."""
    with Image.open(file, formats=FORMATS) as image:
        image.draft("RGB", (size, size))  # JPEG decodes small at once
        upright: Image.Image = ImageOps.exif_transpose(image)
        if is_deep(upright):
            upright = _eight_bits(upright, levels)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        return upright.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Whether it is grey, of more than 8 bits a pixel, which Pillow would clip at 255."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def has_16_bit_colours(path: str) -> bool:
    """Whether an image holds 16 bits a colour, of which Pillow reads the upper 8."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return not is_deep(image) and any(";16" in str(tile[-1]) for tile in image.tile)
    except Exception:  # reading it will say what is wrong
        return False


def attempt(path: str, size: int, whole: bool, levels: Levels | None) -> np.ndarray | Exception | None:
    """The pixels, or nothing if they are not wanted; or what is wrong with the file.

    Args:
        path: The file.
        size: See :func:`decode`.
        whole: Whether the pixels are wanted.
        levels: See :func:`decode`.
    """
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise FileNotFoundError("no file")
        if whole:
            return decode(path, size, levels)
        with Image.open(path, formats=FORMATS) as image:
            if is_deep(image) and levels is None:
                raise DeepImageError("more than 8 bits")
            return None
    except Exception as error:  # a damaged file can raise nearly anything
        return error


def _values(image: Image.Image) -> np.ndarray:
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("holds NaN or infinity")
    return values


def _eight_bits(image: Image.Image, levels: Levels | None) -> Image.Image:
    if levels is None:
        raise DeepImageError("more than 8 bits a pixel; give data.levels")
    low, high = levels
    grey = np.clip((_values(image) - low) / (high - low), 0, 1)
    return Image.fromarray(np.rint(grey * 255).astype(np.uint8))


def some_values(path: str) -> np.ndarray:
    """Some values of a deep image, float64, evenly spread over it, its lowest and highest among them; none if damaged."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            values = _values(image).ravel()
    except Exception:  # reading it will say what is wrong
        return np.empty(0)
    return np.append(values[:: max(1, len(values) // SAMPLED)], (values.min(), values.max()))


def levels_of(values: Sequence[np.ndarray]) -> Levels:
    """The values that become black and white: the lowest and the highest of a whole set, but for far outliers.

    Outliers, such as a camera's dead pixels, are what lies further from 98 % of all values than four times the distance
    that those span.

    Args:
        values: Values of each image, any number, any shape.
    """
    everything = np.concatenate([each.ravel() for each in values])
    if not len(everything):
        return 0.0, 1.0
    first, last = np.percentile(everything, (1, 99))
    if last > first:
        near = (everything >= first - 4 * (last - first)) & (everything <= last + 4 * (last - first))
        everything = everything[near]
    low, high = float(everything.min()), float(everything.max())
    return low, high if high > low else low + 1


def is_flat(pixels: np.ndarray) -> bool:
    """Whether an image, uint8 (3, H, W), is of one colour all over, or as good as."""
    channels = pixels.reshape(len(pixels), -1).astype(np.int16)
    return bool((channels.max(1) - channels.min(1)).max() < FLAT)
