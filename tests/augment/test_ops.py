"""The operations against Pillow, image by image, and their dispatch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from ssl_weighting.augment.ops import FILL, OPS, RESCALE_METHODS, apply_ops

GREY = 128  # stands for FILL where Pillow needs a whole level


def _transform(x_row, y_row):
    def reference(image, magnitude):
        w, h = image.size
        matrix = [v(magnitude, w, h) if callable(v) else v for v in (*x_row, *y_row)]
        grey = GREY if image.mode == "L" else (GREY,) * 3
        return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=grey)

    return reference


def _rotate(image, degrees):
    return image.rotate(degrees, fillcolor=GREY if image.mode == "L" else (GREY,) * 3)


def _rescale(method):
    def reference(image, cut):
        w, h = image.size
        box = (cut * w, cut * h, w * (1 - cut), h * (1 - cut))
        return image.crop(box).resize(image.size, getattr(Image.Resampling, method.upper()))

    return reference


def _blended(other):
    return lambda image, share: Image.blend(image, other(image), share)


def _enhanced(enhancer):
    return lambda image, factor: enhancer(image).enhance(factor)


SHARES = [0.0, 0.3, 0.77, 1.0]
FACTORS = [0.1, 0.28, 0.64, 1.0, 1.36, 2.0]
SHIFTS = [-0.25, -0.1, 0.0, 0.09, 0.28125, 0.3]
MARGINS = [0.0, 0.04, 0.13, 0.19, 0.24]  # no source point of these is on the edge between two pixels
SHEARS = [-0.3, -0.12, 0.0, 0.03, 0.27]

# The largest difference is in levels: Pillow truncates the result of a blend (1) and before it rounds a mean
# or a filter's result (1/2) or truncates a stretched channel (1).
POINTWISE: dict[str, tuple[Callable[..., Image.Image], list[float], float]] = {
    "identity": (lambda image, _: image, [0.0], 0),
    "autocontrast": (_blended(ImageOps.autocontrast), SHARES, 2),
    "equalize": (_blended(ImageOps.equalize), SHARES, 1),
    "invert": (_blended(ImageOps.invert), SHARES, 1),
    "smooth": (_blended(lambda i: i.filter(ImageFilter.SMOOTH)), SHARES, 1.5),
    "blur": (_blended(lambda i: i.filter(ImageFilter.BLUR)), SHARES, 1.5),
    "brightness": (_enhanced(ImageEnhance.Brightness), FACTORS, 1),
    "contrast": (_enhanced(ImageEnhance.Contrast), FACTORS, 1.5),
    "color": (_enhanced(ImageEnhance.Color), FACTORS, 1.5),
    "sharpness": (_enhanced(ImageEnhance.Sharpness), FACTORS, 1.5),
    "solarize": (lambda i, level: ImageOps.solarize(i, int(level)), [0.0, 26.0, 128.0, 231.9, 256.0], 0),
    "posterize": (lambda i, bits: ImageOps.posterize(i, int(bits)), [1.0, 2.0, 3.5, 4.0, 6.0, 8.0], 0),
    **{f"rescale_{m}": (_rescale(m), MARGINS, 1.5) for m in RESCALE_METHODS},
}

GEOMETRIC = {
    "rotate": (_rotate, [-43.0, -21.0, 0.0, 3.0, 12.0, 27.0, 44.0]),
    "shear_x": (_transform((1, lambda m, w, h: m, 0), (0, 1, 0)), SHEARS),
    "shear_y": (_transform((1, 0, 0), (lambda m, w, h: m, 1, 0)), SHEARS),
    "translate_x": (_transform((1, 0, lambda m, w, h: m * w), (0, 1, 0)), SHIFTS),
    "translate_y": (_transform((1, 0, 0), (0, 1, lambda m, w, h: m * h)), SHIFTS),
}

SHAPES = [(3, 32, 32), (1, 8, 8), (3, 24, 40)]


def eight_bit_images(channels, height, width):
    """Noise of several contrasts, a gradient, a flat image, one that uses few levels."""
    rng = np.random.default_rng(0)
    noise = rng.random((5, channels, height, width)) ** np.array([0.4, 1, 2, 3, 1])[:, None, None, None]
    noise[4] = 0.3 + 0.2 * noise[4]
    gradient = np.broadcast_to(np.linspace(0.1, 0.8, width), (1, channels, height, width))
    flat = np.full((1, channels, height, width), 0.4)
    few = rng.integers(0, 3, (1, channels, height, width)) / 3
    return (np.concatenate([noise, gradient, flat, few]) * 255).round().astype(np.uint8)


def in_levels(op, levels, magnitude):
    """The operation on 8-bit images, its result in levels; the input must survive."""
    images = torch.from_numpy(levels).float() / 255
    before = images.clone()
    result = OPS[op](images, torch.full((len(images),), magnitude))
    assert torch.equal(images, before)
    assert result.shape == images.shape and result.dtype == torch.float32
    assert result.min() >= 0 and result.max() <= 1
    return result.numpy() * 255


def by_pillow(reference, levels, magnitude):
    def one(image):
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        result = np.asarray(reference(picture, magnitude))
        return result[None] if len(image) == 1 else result.transpose(2, 0, 1)

    return np.stack([one(image) for image in levels])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", POINTWISE)
def test_pointwise_operations_agree_with_pillow(op, shape):
    reference, magnitudes, tolerance = POINTWISE[op]
    levels = eight_bit_images(*shape)
    for magnitude in magnitudes:
        difference = np.abs(in_levels(op, levels, magnitude) - by_pillow(reference, levels, magnitude))
        assert difference.max() <= tolerance + 1e-3, magnitude


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", GEOMETRIC)
def test_geometric_operations_take_the_pixels_that_pillow_takes(op, shape):
    reference, magnitudes = GEOMETRIC[op]
    levels = eight_bit_images(*shape)[:1]
    for magnitude in magnitudes:
        result = in_levels(op, levels, magnitude)
        result[result == FILL * 255] = GREY
        different = np.abs(result - by_pillow(reference, levels, magnitude)).max(axis=1) > 1e-3
        # Ties of Pillow's fixed-point coordinates; shifts have none.
        assert different.mean() <= (0 if op.startswith("translate") else 0.004), magnitude


def test_every_operation_has_a_reference():
    assert {*POINTWISE, *GEOMETRIC, "cutout"} == set(OPS)


def test_translation_moves_whole_pixels_and_leaves_grey_behind():
    images = torch.rand(1, 3, 32, 32)
    moved = OPS["translate_x"](images, torch.tensor([9 / 32]))
    assert torch.equal(moved[..., :23], images[..., 9:])
    assert (moved[..., 23:] == FILL).all()


def test_each_image_gets_its_own_magnitude():
    images = torch.rand(4, 3, 16, 16)
    magnitude = torch.tensor([0.1, 0.2, 0.05, 0.24])
    for name, op in OPS.items():
        if name != "cutout":
            together = op(images, magnitude)
            alone = torch.cat([op(images[i : i + 1], magnitude[i : i + 1]) for i in range(4)])
            torch.testing.assert_close(together, alone, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 2, 7), (3, 4, 4)], ids=str)
def test_tiny_images_pass_through_every_operation(op, shape):
    images = torch.rand(2, *shape)
    assert OPS[op](images, torch.full((2,), 0.2)).shape == images.shape


def test_quantising_operations_are_not_fooled_by_float_rounding():
    # 1 - k/255 is often just below a whole level; taking that for the level below would show as a step.
    levels = torch.arange(256.0).view(1, 1, 16, 16)
    negative = OPS["invert"](levels / 255, torch.ones(1))
    kept = OPS["posterize"](negative, torch.full((1,), 4.0)) * 255
    torch.testing.assert_close(kept, (255 - levels).div(16).floor() * 16)


def test_cutout_is_a_clipped_square_around_a_uniform_centre():
    torch.manual_seed(0)
    images = torch.zeros(20_000, 1, 8, 8)
    holes = OPS["cutout"](images, torch.full((20_000,), 0.5)).squeeze(1) == FILL
    # Centres 0..7, side 4 covers [centre - 2, centre + 2): 2, 3, 4, 4, 4, 4, 4, 3 pixels of a row.
    for axis in (1, 2):
        lengths = holes.any(axis).sum(1)
        shares = torch.bincount(lengths, minlength=5) / len(images)
        torch.testing.assert_close(shares, torch.tensor([0, 0, 1, 2, 5]) / 8, atol=0.02, rtol=0)
    filled = holes.flatten(1).sum(1)
    assert torch.equal(filled, holes.any(1).sum(1) * holes.any(2).sum(1))


def test_double_precision_elsewhere_changes_nothing():
    names = list(OPS)
    images, choice = torch.rand(len(names), 3, 8, 8), torch.arange(len(names))[None]
    magnitude, found = 0.25 * torch.rand(1, len(names)), []
    for dtype in (torch.float32, torch.float64):  # the latter as under a precision of 64-true
        torch.set_default_dtype(dtype)
        torch.manual_seed(0)  # cutout draws its place
        try:
            found.append(apply_ops(images, names, choice, magnitude.to(dtype)))
        finally:
            torch.set_default_dtype(torch.float32)
    assert found[1].dtype == torch.float32
    assert torch.equal(*found)


def test_apply_ops_gives_each_image_its_sequence_in_order():
    torch.manual_seed(0)
    names = ["invert", "solarize", "rotate", "posterize", "translate_x"]
    strengths = torch.tensor([1.0, 100.0, 20.0, 3.0, 0.2])
    images = torch.rand(40, 3, 12, 12)
    choice = torch.randint(-1, len(names), (3, 40))
    magnitude = strengths[choice.clamp(min=0)]
    expected = []
    for i, image in enumerate(images.unbind()):
        image = image[None]
        for layer in range(3):
            if choice[layer, i] >= 0:
                image = OPS[names[choice[layer, i]]](image, magnitude[layer, i : i + 1])
        expected.append(image)
    torch.testing.assert_close(apply_ops(images, names, choice, magnitude), torch.cat(expected))
