"""Deep images of a set are seen in one range of values, and what shows nothing is named."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from ssl_weighting.data.images import Images
from ssl_weighting.errors import DataWarning, UserError
from ssl_weighting.image_pixels import FORMATS, levels_of


def stripes(number, across, low=1000, kind=np.uint16):
    draw = np.random.default_rng(number)
    values = np.full((16, 16), low) + draw.integers(0, 20, (16, 16))
    (values if across else values.T)[::4] += 100
    return values.astype(kind)


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def deep(tmp_path):
    """Two classes that differ in their texture, of values from 1000 to 1120 in 16 bits."""
    for i in range(6):
        save(tmp_path / "labelled" / "across" / f"{i}.png", stripes(i, True))
        save(tmp_path / "labelled" / "down" / f"{i}.png", stripes(50 + i, False))
        save(tmp_path / "pool" / f"{i}.png", stripes(100 + i, bool(i % 2)))
    return tmp_path


def set_up(folder, stage="fit", **changes):
    given = {"labeled": folder / "labelled", "unlabeled": folder / "pool", "size": 16, "split_seed": 0}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = Images(**(given | changes))
        data.setup(stage)
    assert all(warning.category is DataWarning for warning in said), [str(w.message) for w in said]
    return data, [str(warning.message) for warning in said]


def pixels(data, name):
    source = data.sets["unlabeled"].source
    row = next(row for row, file in enumerate(source.files) if file.name == name)
    return source.pixels[row].numpy()


def test_a_whole_set_is_seen_in_its_own_range(deep):
    data, (line,) = set_up(deep)
    low, high = data.levels
    assert low == 1000 and 1110 < high < 1120
    assert "data.levels: 18 of 18 images hold more than 8 bits a pixel" in line
    expected = np.rint((stripes(0, True).astype(float) - low) / (high - low) * 255)
    assert (pixels(data, "across/0.png") == expected).all()


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_dark_images_stay_darker_than_bright_ones(deep, kind):
    for path in [*deep.rglob("*.png")]:
        path.unlink()
    for i in range(6):
        save(deep / "labelled" / "across" / f"{i}.tif", stripes(i, True, 100 * i, kind))
        save(deep / "labelled" / "down" / f"{i}.tif", stripes(i, False, 100 * i, kind))
        save(deep / "pool" / f"{i}.tif", stripes(10 + i, False, 100 * i, kind))
    data, _ = set_up(deep)
    means = [pixels(data, f"across/{i}.tif").mean() for i in range(6)]
    assert np.allclose(np.diff(means), 100 / (data.levels[1] - data.levels[0]) * 255, atol=1.5)


def test_a_dead_pixel_does_not_stretch_the_range():
    values = [stripes(i, True) for i in range(10)]
    plain = levels_of(values)
    values[3][0, 0], values[4][2, 2] = 65535, 0
    assert levels_of(values) == plain
    faint = [np.append(stripes(i, True), [1400]) for i in range(10)]  # rare, and no outlier
    assert levels_of(faint)[1] == 1400
    assert levels_of([np.zeros(9)]) == (0, 1)


def test_nan_and_infinity_are_damage(deep):
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        values = stripes(0, True, kind=np.float32)
        values[3, 3] = value
        save(deep / "pool" / f"{name}.tif", values)
    data, said = set_up(deep)
    assert len(data.sets["unlabeled"]) == 6 + 6
    assert "2 of 20 images cannot be read and are left out (the first: holds NaN or infinity): " in said[-1]
    assert "unlabeled/inf.tif, unlabeled/nan.tif" in said[-1]
    (deep / "pool" / "nan.tif").rename(deep / "labelled" / "across" / "nan.tif")
    with pytest.raises(UserError, match=r"cannot be read \(holds NaN or infinity\): across/nan\.tif"):
        set_up(deep)


def test_levels_can_be_given_and_images_that_come_out_flat_are_named(deep):
    data, (line,) = set_up(deep, levels=(0, 65535))
    assert data.levels == (0, 65535)
    assert "18 of 18 images are of one colour all over and show nothing: across/0.png, " in line
    assert "data.levels says which values become black and white" in line


def test_deep_images_where_training_had_none_are_not_guessed_at(tmp_path):
    for i in range(4):
        save(tmp_path / "labelled" / "a" / f"{i}.png", (stripes(i, True) - 1000).astype(np.uint8))
        save(tmp_path / "labelled" / "b" / f"{i}.png", (stripes(i, False) - 1000).astype(np.uint8))
    save(tmp_path / "test" / "a" / "0.png", stripes(0, True))
    with pytest.raises(UserError, match=r"a/0\.png.*|more than 8 bits a pixel; give data\.levels"):
        set_up(tmp_path, unlabeled=None, num_labeled=2, test=tmp_path / "test")


def test_pillows_own_remarks_reach_nobody(deep):
    Image.new("L", (12_000, 9_000)).save(deep / "pool" / "huge.png")
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(deep / "pool" / "huge.png", formats=FORMATS)
    set_up(deep)  # asserts that all that is said is the program's


def save_16_bit_colours(path, values):
    """A PNG as Pillow cannot write it; values uint16 (H, W, 3)."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("kept", [True, False])
def test_colours_of_which_half_is_lost_are_said(deep, monkeypatch, kept):
    if not kept:
        monkeypatch.setattr("ssl_weighting.data.images.KEPT_BYTES", 0)
    values = np.random.default_rng(0).integers(0, 4096, (16, 16, 3))
    save_16_bit_colours(deep / "pool" / "colour.png", values)
    _, said = set_up(deep)
    assert "the other 1 have 8 bits and stay as they are" in said[0]
    assert (
        "1 of 19 images hold 16 bits a colour, of which the upper 8 are seen: unlabeled/colour.png" in said[1]
    )
