"""The image operations that the augmentation policies draw from.

An operation is a function ``(images, magnitude) -> images``: images are float32 of shape (n, C, H, W) in
[0, 1], C is 1 or 3, and ``magnitude`` is float32 of shape (n,), one strength for each image, in the unit
that the operation's docstring gives. The result is a tensor of the same shape; the input is not modified.

Every operation means what Pillow's does on 8-bit images: an image whose values are k/255 comes out within
2/255 of Pillow's result (Pillow truncates to whole levels after each operation, these do not), save for
geometric ones, where Pillow's 16.16 fixed-point coordinates may pick the neighbouring pixel on a tie.
Pixels that have no source, and cut-out squares, become :data:`FILL`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_saturation_with_gray_subtraction,
)
from kornia.enhance import equalize as kornia_equalize
from kornia.enhance import posterize as kornia_posterize
from kornia.enhance import solarize as kornia_solarize
from torch import Tensor

Op = Callable[[Tensor, Tensor], Tensor]

#: The grey of uncovered and cut-out pixels: 0 once images are scaled to [-1, 1].
FILL = 0.5


def check_images(images: Tensor) -> None:
    """Refuse what is no batch of images.

    Raises:
        ValueError: if ``images`` is not float32 of shape (B, C, H, W) with C = 1 or 3.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images must have shape (B, C, H, W) with C = 1 or 3, got {tuple(images.shape)}; "
            "move the channels to the second axis, and add a batch axis to a single image"
        )
    if images.dtype != torch.float32:
        raise ValueError(
            f"images must be float32 in [0, 1], got {images.dtype}; convert 8-bit ones: images.float() / 255"
        )


def _per_image(magnitude: Tensor) -> Tensor:
    return magnitude[:, None, None, None]


def _blend(start: Tensor, end: Tensor, amount: Tensor) -> Tensor:
    """``Image.blend``: 0 is ``start``, 1 is ``end``, beyond them extrapolates; clipped to [0, 1]."""
    return torch.lerp(start, end, _per_image(amount)).clamp_(0, 1)


def _whole_levels(images: Tensor) -> Tensor:
    """Truncate to k/255 as Pillow does. The 2^-8 keeps a k that float arithmetic left just below itself."""
    return images.mul(255).add_(2**-8).floor_().div_(255)


# Blends with another version of the image: magnitude is the share of that version, 0 to 1.


def identity(images: Tensor, magnitude: Tensor) -> Tensor:
    """The images themselves; the magnitude has no meaning."""
    return images


def autocontrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with ``ImageOps.autocontrast``: each channel stretched to [0, 1]. Magnitude: share, 0 to 1."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high == low
    stretched = (images - low.masked_fill(flat, 0)) / (high - low).masked_fill(flat, 1)
    return _blend(images, stretched, magnitude)


def equalize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with ``ImageOps.equalize``: each channel's histogram flattened. Magnitude: share, 0 to 1."""
    return _blend(images, kornia_equalize(_whole_levels(images)), magnitude)


def invert(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with ``ImageOps.invert``, the negative. Magnitude: share, 0 to 1."""
    return _blend(images, 1 - images, magnitude)


# Pillow's two filters are sums over squares, which two sliding windows take ten times faster than a depthwise
# convolution (for 300 images on a CPU; kornia's sharpness is one, and refuses images less than 3 wide).


def _box_sum(images: Tensor, width: int) -> Tensor:
    return images.unfold(2, width, 1).sum(-1).unfold(3, width, 1).sum(-1)


def _smoothed(images: Tensor) -> Tensor:
    result = images.clone()  # Pillow copies the border, where the kernel does not fit
    if min(images.shape[2:]) >= 3:
        centre = images[:, :, 1:-1, 1:-1]
        result[:, :, 1:-1, 1:-1] = (_box_sum(images, 3) + 4 * centre) / 13
    return result


def smooth(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with ``ImageFilter.SMOOTH`` (3x3, weight 5/13 in the centre). Magnitude: share, 0 to 1."""
    return _blend(images, _smoothed(images), magnitude)


def blur(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with ``ImageFilter.BLUR`` (mean of the border of a 5x5 square). Magnitude: share, 0 to 1."""
    blurred = images.clone()
    if min(images.shape[2:]) >= 5:
        inner = _box_sum(images, 3)[:, :, 1:-1, 1:-1]
        blurred[:, :, 2:-2, 2:-2] = (_box_sum(images, 5) - inner) / 16
    return _blend(images, blurred, magnitude)


# Enhancers: magnitude is Pillow's factor, 1 leaves the image as it is.


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """``ImageEnhance.Brightness``. Magnitude: factor; 0 is black."""
    result: Tensor = adjust_brightness_accumulative(images, magnitude)
    return result


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """``ImageEnhance.Contrast``. Magnitude: factor; 0 is the mean grey level."""
    result: Tensor = adjust_contrast_with_mean_subtraction(images, magnitude)
    return result


def color(images: Tensor, magnitude: Tensor) -> Tensor:
    """``ImageEnhance.Color``. Magnitude: factor; 0 is the grey image. The identity on one channel."""
    result: Tensor = adjust_saturation_with_gray_subtraction(images, magnitude)
    return result


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """``ImageEnhance.Sharpness``. Magnitude: factor; 0 is ``ImageFilter.SMOOTH``."""
    return _blend(_smoothed(images), images, magnitude)


# Point operations.


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """``ImageOps.solarize``. Magnitude: threshold, 0 to 256 (inverts nothing); its whole part is used."""
    result: Tensor = kornia_solarize(images, (magnitude.floor() - 2**-8) / 255)
    return result


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """``ImageOps.posterize``. Magnitude: bits kept, 1 to 8, its whole part is used."""
    result: Tensor = kornia_posterize(_whole_levels(images), magnitude.long())
    return result


# Geometry: magnitudes are for the map from the output to its source, as in Image.transform.


def _warp(images: Tensor, x: Sequence[Tensor | float], y: Sequence[Tensor | float]) -> Tensor:
    """``Image.transform(size, AFFINE, (*x, *y), NEAREST)`` with one matrix for each image.

    A gather, not ``grid_sample``, which rounds ties to the even pixel where Pillow takes the next: a shift by
    half a pixel would move every second column only.
    """
    n, c, h, w = images.shape
    rows = torch.arange(h, device=images.device, dtype=images.dtype)[:, None] + 0.5
    columns = torch.arange(w, device=images.device, dtype=images.dtype) + 0.5

    def source(row_of_matrix: Sequence[Tensor | float]) -> Tensor:
        a, b, shift = (v[:, None, None] if isinstance(v, Tensor) else v for v in row_of_matrix)
        return (a * columns + b * rows + shift).floor().expand(n, h, w)

    source_x, source_y = source(x), source(y)
    inside = (source_x >= 0) & (source_x < w) & (source_y >= 0) & (source_y < h)
    index = (source_y * w + source_x).long().masked_fill_(~inside, 0)
    warped = images.flatten(2).gather(2, index.view(n, 1, h * w).expand(n, c, h * w)).view_as(images)
    return warped.masked_fill_(~inside[:, None], FILL)


def rotate(images: Tensor, magnitude: Tensor) -> Tensor:
    """``Image.rotate`` about the centre. Magnitude: degrees, anticlockwise."""
    h, w = images.shape[2:]
    angle = torch.deg2rad(magnitude)
    cos, sin = angle.cos(), angle.sin()
    shift_x = w / 2 - cos * w / 2 + sin * h / 2
    shift_y = h / 2 - sin * w / 2 - cos * h / 2
    return _warp(images, (cos, -sin, shift_x), (sin, cos, shift_y))


def shear_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shear along the width with the top row fixed. Magnitude: columns of shift for each row."""
    return _warp(images, (1.0, magnitude, 0.0), (0.0, 1.0, 0.0))


def shear_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shear along the height with the left column fixed. Magnitude: rows of shift for each column."""
    return _warp(images, (1.0, 0.0, 0.0), (magnitude, 1.0, 0.0))


def translate_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move along the width. Magnitude: fraction of the width; positive moves the content left."""
    return _warp(images, (1.0, 0.0, magnitude * images.shape[3]), (0.0, 1.0, 0.0))


def translate_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move along the height. Magnitude: fraction of the height; positive moves the content up."""
    return _warp(images, (1.0, 0.0, 0.0), (0.0, 1.0, magnitude * images.shape[2]))


def cutout(images: Tensor, magnitude: Tensor) -> Tensor:
    """Grey out a square around a uniformly drawn pixel, clipped at the borders (DeVries & Taylor 2017).

    Magnitude: side of the square as a fraction of the width, rounded to whole pixels.
    """
    n, _, h, w = images.shape
    side = (magnitude * w).round()[:, None]

    def covered(size: int) -> Tensor:
        position = torch.arange(size, device=images.device)
        start = torch.randint(size, (n, 1), device=images.device) - side.div(2, rounding_mode="floor")
        return (position >= start) & (position < start + side)

    square = covered(h)[:, None, :, None] & covered(w)[:, None, None, :]
    return images.masked_fill(square, FILL)


# Rescale: Pillow's filters, as functions of the distance in source pixels. An enlarged crop needs no
# antialiasing, so a filter's width is fixed and a resize is one small matrix for each image and axis.
# F.interpolate takes one crop for a whole batch and has neither box nor Hamming.


def _lanczos(distance: Tensor) -> Tensor:
    return torch.where(distance.abs() < 3, torch.sinc(distance) * torch.sinc(distance / 3), 0)


def _bicubic(distance: Tensor) -> Tensor:
    d = distance.abs()
    near, far = (1.5 * d - 2.5) * d * d + 1, ((2.5 - 0.5 * d) * d - 4) * d + 2
    return torch.where(d < 1, near, torch.where(d < 2, far, 0))


def _bilinear(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _box(distance: Tensor) -> Tensor:
    return ((distance > -0.5) & (distance <= 0.5)).float()


def _hamming(distance: Tensor) -> Tensor:
    window = 0.54 + 0.46 * torch.cos(math.pi * distance)
    return torch.where(distance.abs() < 1, torch.sinc(distance) * window, 0)


#: Resampling filters of ``rescale_*``. Enlarging by ``box`` is enlarging by ``nearest``.
RESCALE_METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    "lanczos": _lanczos,
    "bicubic": _bicubic,
    "bilinear": _bilinear,
    "box": _box,
    "hamming": _hamming,
    "nearest": _box,
}


def _enlarging_matrix(size: int, margin: Tensor, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """(n, size, size): how each output pixel weighs the source pixels between the margins."""
    low = (margin * size).round()[:, None, None]
    high = (size - margin * size).round()[:, None, None]
    pixel = torch.arange(size, device=margin.device, dtype=margin.dtype)
    centre = low + (pixel[:, None] + 0.5) * (high - low) / size
    weights = kernel(pixel + 0.5 - centre) * ((pixel >= low) & (pixel < high))
    return weights / weights.sum(-1, keepdim=True)


def rescale(images: Tensor, magnitude: Tensor, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """Crop ``magnitude`` of the width and of the height from each side and resize to the old size.

    Magnitude: fraction, 0 to 0.25, rounded to whole pixels.
    """
    across = _enlarging_matrix(images.shape[3], magnitude, kernel)[:, None]
    down = _enlarging_matrix(images.shape[2], magnitude, kernel)[:, None]
    return (down @ (images @ across.mT).clamp_(0, 1)).clamp_(0, 1)


#: Every operation by its name.
OPS: dict[str, Op] = {
    "identity": identity,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
    "smooth": smooth,
    "blur": blur,
    "brightness": brightness,
    "contrast": contrast,
    "color": color,
    "sharpness": sharpness,
    "solarize": solarize,
    "posterize": posterize,
    "rotate": rotate,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "cutout": cutout,
    **{f"rescale_{method}": partial(rescale, kernel=kernel) for method, kernel in RESCALE_METHODS.items()},
}


def apply_ops(images: Tensor, names: Sequence[str], choice: Tensor, magnitude: Tensor) -> Tensor:
    """Give every image its own sequence of operations.

    The images that drew the same operation go through it together. How many they are is read from ``choice``:
    where that lies on the CPU nothing waits for the images' device, else the call waits for it once.

    Args:
        images: float32 (B, C, H, W) in [0, 1].
        names: keys of :data:`OPS`, K of them.
        choice: int64 (depth, B), positions in ``names`` in the order of application; -1 applies nothing.
        magnitude: floating point (depth, B), in the units of the operations chosen.

    Returns:
        float32 (B, C, H, W) in [0, 1], a new tensor.
    """
    order = choice.argsort(dim=1, stable=True)
    hits = torch.zeros(len(choice), len(names) + 1, dtype=torch.int64, device=choice.device)
    counts = hits.scatter_add_(1, choice + 1, torch.ones_like(choice)).tolist()
    order = order.to(images.device, non_blocking=True)
    magnitude = magnitude.to(images, non_blocking=True)
    result = images.clone()
    # Autocast would run the matrix products in half precision, which is too coarse for 8-bit levels.
    with torch.autocast(images.device.type, enabled=False):
        for layer, (skipped, *layer_counts) in enumerate(counts):
            end = skipped
            for name, count in zip(names, layer_counts, strict=True):
                start, end = end, end + count
                if count:
                    rows = order[layer, start:end]
                    result.index_copy_(0, rows, OPS[name](result[rows], magnitude[layer, rows]))
    return result
