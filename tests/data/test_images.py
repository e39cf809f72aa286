"""Images of one's own: files of every kind, found, refused, decoded and split."""

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ssl_weighting.data import images as module
from ssl_weighting.data import write_split
from ssl_weighting.data.images import Images
from ssl_weighting.errors import UserError
from ssl_weighting.image_pixels import decode

COLOURS = {"blue": (0, 0, 255), "green": (0, 200, 0), "red": (255, 0, 0)}


def paint(path, colour, size=(24, 16), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


@pytest.fixture
def folders(tmp_path):
    """Three classes of eight images, a nested pool of mixed formats, and a test set."""
    for name, colour in COLOURS.items():
        for i in range(8):
            paint(tmp_path / "labeled" / name / f"{i}.png", colour, (20 + i, 16))
        for i in range(2):
            paint(tmp_path / "test" / name / "deeper" / f"{i}.jpg", colour)
    for i, ending in enumerate(("jpg", "JPEG", "png", "webp", "bmp", "tiff", "tif", "gif")):
        paint(tmp_path / "pool" / ("a" if i % 2 else "b/c") / f"{i}.{ending}", (10 * i, 100, 200), (16, 40))
    (tmp_path / "pool" / "notes.txt").write_text("no image")
    (tmp_path / "pool" / ".hidden.png").write_bytes(b"")
    return tmp_path


def data(folders, **changes):
    arguments = {"labeled": folders / "labeled", "unlabeled": folders / "pool", "size": 16, "split_seed": 0}
    return Images(**(arguments | changes))


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- what is found ----


def test_folders_are_classes_and_a_nested_folder_is_the_pool(folders):
    d = data(folders, test=folders / "test")
    d.setup()
    assert d.class_names == ["blue", "green", "red"]
    # 30 % of 8, at least 3, validate; the pool is the 8 files and the labelled 15
    assert {part: len(s) for part, s in d.sets.items()} == {
        "labeled": 15,
        "validation": 9,
        "unlabeled": 23,
        "test": 6,
    }
    assert d.sets["validation"].labels.bincount().tolist() == [3, 3, 3]
    assert sorted(d.sets["unlabeled"].labels.tolist()) == [-1] * 8 + [0] * 5 + [1] * 5 + [2] * 5
    batch = d.sets["labeled"].__getitems__(list(range(15)))
    assert batch.inputs.dtype == torch.uint8
    assert batch.inputs.shape == (15, 3, 16, 16)
    for image, label in zip(batch.inputs, batch.labels, strict=True):
        assert tuple(image[:, 8, 8].tolist()) == COLOURS[d.class_names[label]]
    assert d.view(batch.inputs, ("weak",)).shape == batch.inputs.shape


def test_examples_are_described_by_paths_that_can_be_opened(folders):
    d = data(folders)
    d.setup()
    pool = d.sets["unlabeled"]
    rows = pool.rows[pool.labels < 0]
    paths = pool.source.describe(rows)
    assert sorted(path.rsplit("/", 1)[1] for path in paths) == [
        *("0.jpg", "1.JPEG", "2.png", "3.webp", "4.bmp", "5.tiff", "6.tif", "7.gif")
    ]
    for path, pixels in zip(paths, pool.source.fetch(rows), strict=True):
        assert np.array_equal(decode(path, 16), pixels.numpy())


def test_numbers_as_class_names_are_in_the_order_of_their_value(tmp_path):
    for name in ("10", "9", "a"):
        for i in range(2):
            paint(tmp_path / "labeled" / name / f"{i}.png", (0, 0, 0))
    assert data(tmp_path, unlabeled=None).class_names == ["9", "10", "a"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_table_of_paths_and_labels(folders, kind):
    paths = sorted((folders / "labeled").rglob("*.png"))
    rows = [(p.relative_to(folders).as_posix(), p.parent.name) for p in paths]
    rows += [(p.relative_to(folders).as_posix(), "") for p in (folders / "pool" / "a").iterdir()]
    table = folders / f"index.{kind}"
    if kind == "csv":
        table.write_text("label,path\n" + "".join(f"{label},{path}\n" for path, label in rows))
    else:
        names, labels = zip(*rows, strict=True)
        pq.write_table(pa.table({"path": names, "label": [label or None for label in labels]}), table)
    d = data(folders, labeled=table, unlabeled=None)
    d.setup()
    assert d.class_names == ["blue", "green", "red"]
    assert [len(d.sets[p]) for p in ("labeled", "validation", "unlabeled")] == [15, 9, 19]


def test_no_pool_takes_labelled_images_beyond_num_labeled(folders):
    d = data(folders, unlabeled=None, num_labeled=6)
    d.setup()
    assert [len(d.sets[p]) for p in ("labeled", "validation", "unlabeled")] == [6, 9, 15]
    with pytest.raises(UserError, match=r"data.num_labeled=null: .* leaves no pool") as error:
        data(folders, unlabeled=None).setup()
    one_line(error)


def test_pool_around_the_labelled_and_test_images_does_not_hold_them(folders):
    (folders / "pool" / "link.png").hardlink_to(folders / "labeled" / "red" / "0.png")
    d = data(folders, unlabeled=folders, test=folders / "test")
    d.setup()
    assert len(d.sets["unlabeled"]) == 8 + 15
    everything = d.sets["unlabeled"].source
    validation = set(everything.describe(d.split.validation))
    assert not validation & set(everything.describe(d.split.unlabeled))


def test_pool_inside_the_labelled_folder_is_no_class(folders):
    (folders / "pool").rename(folders / "labeled" / "unlabeled")
    d = data(folders, unlabeled=folders / "labeled" / "unlabeled")
    d.setup()
    assert d.class_names == ["blue", "green", "red"]
    assert len(d.sets["unlabeled"]) == 23


# ---- how it is decoded ----


def test_longer_side_is_cropped_at_the_centre(tmp_path):
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, 10:20] = 255
    Image.fromarray(stripes).save(tmp_path / "x.png")
    seen = decode(tmp_path / "x.png", 10)
    assert (seen == 255).all()
    assert decode(tmp_path / "x.png", 20).shape == (3, 20, 20)


def test_photos_stand_upright(tmp_path):
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:8] = 255  # the upper half is white
    image = Image.fromarray(picture)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90° clockwise
    image.save(tmp_path / "x.jpg", exif=exif, quality=95)
    seen = decode(tmp_path / "x.jpg", 16).astype(int)
    assert seen[:, :, 9:].min() > 200
    assert seen[:, :, :7].max() < 50


def test_transparent_is_white_and_sixteen_bits_are_eight(tmp_path):
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (decode(tmp_path / "clear.png", 8) == 255).all()
    grey = Image.new("P", (9, 9), 0)
    grey.putpalette([7, 8, 9] * 256)
    grey.save(tmp_path / "palette.gif")
    assert decode(tmp_path / "palette.gif", 8)[:, 0, 0].tolist() == [7, 8, 9]
    for level in (0, 0x8000, 0xFFFF):
        Image.fromarray(np.full((9, 9), level, np.uint16)).save(tmp_path / "deep.png")
        assert decode(tmp_path / "deep.png", 8, (0, 65535))[0, 0, 0] == round(level / 257)
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(tmp_path / "float.tiff")
    assert decode(tmp_path / "float.tiff", 8, (0, 1))[0, 0, 0] == 128


def test_large_sets_are_decoded_by_workers_to_the_same_pixels(folders, monkeypatch):
    kept = data(folders)
    kept.setup()
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    lazy = data(folders)
    lazy.setup()
    assert kept.split.sha256() == lazy.split.sha256()
    assert lazy.sets["unlabeled"].source.pixels is None
    loader = DataLoader(
        lazy.sets["unlabeled"], batch_sampler=[[0, 22, 5], [20]], collate_fn=lambda b: b, num_workers=1
    )
    for batch in loader:
        assert torch.equal(batch.inputs, kept.sets["unlabeled"].__getitems__(batch.row.tolist()).inputs)


# ---- damaged files ----


def damage(path, keep=60):
    path.write_bytes(path.read_bytes()[:keep])


def test_damaged_pool_images_are_left_out_and_named(folders):
    damage(folders / "pool" / "a" / "3.webp")
    (folders / "pool" / "a" / "fake.png").write_text("<html>")
    d = data(folders)
    with pytest.warns(UserWarning, match=r"2 of 33 images cannot be read .*a/3\.webp, unlabeled/a/fake\.png"):
        d.setup()
    assert len(d.sets["unlabeled"]) == 22
    again = data(folders)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again.setup()
    assert again.split.sha256() == d.split.sha256()


@pytest.mark.parametrize("part", ["labeled", "test"])
def test_damaged_labelled_and_test_images_are_refused_by_name(folders, part):
    (path,) = (folders / part / "red").rglob("1.*")
    damage(path, keep=20)
    d = data(folders, test=folders / "test")
    with pytest.raises(
        UserError, match=rf"data\.{part}: 1 of its images cannot be read .*red/.*1\."
    ) as error:
        d.setup()
    one_line(error)


def test_image_that_proves_damaged_in_a_long_run_is_grey(folders, monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folders / "pool" / "cut.png")
    damage(folders / "pool" / "cut.png", keep=3000)  # the header is whole
    d = data(folders)
    d.setup()
    source = d.sets["unlabeled"].source
    row = next(i for i, file in enumerate(source.files) if file.name.endswith("cut.png"))
    with pytest.warns(UserWarning, match=r"cut\.png is damaged and shown as grey"):
        assert (source.fetch(torch.tensor([row])) == 128).all()


def test_file_of_another_kind_with_an_images_name_is_not_decoded(tmp_path):
    """PostScript would start another program."""
    Image.new("RGB", (9, 9)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    with pytest.raises(OSError, match="cannot identify"):
        decode(tmp_path / "x.png", 8)


# ---- bad input ----


def table(folder, text):
    (folder / "t.csv").write_text(text)
    return folder / "t.csv"


BAD = {
    "no folder": (lambda f: {"labeled": f / "nowhere"}, r"data\.labeled=.*nowhere: no such folder"),
    "not a table": (lambda f: {"labeled": f / "pool" / "notes.txt"}, "not a folder, nor a table"),
    "no classes": (lambda f: {"labeled": f / "pool" / "a"}, "holds no folders with images"),
    "one class": (lambda f: {"labeled": f / "pool" / "b"}, r"holds 1 class\(es\) \(c\)"),
    "no pool": (lambda f: {"unlabeled": f / "nowhere"}, r"data\.unlabeled=.*no such folder"),
    "strange test class": (
        lambda f: {"test": f / "pool", "unlabeled": None, "num_labeled": 6},
        r"data\.test=.*classes a, b, which data\.labeled",
    ),
    "levels": (
        lambda f: {"levels": (5, 5)},
        r"data\.levels=\[5, 5\]: must be two numbers, the lower one first",
    ),
    "tiny": (lambda f: {"size": 4}, r"data\.size=4: must be at least 8"),
    "test followed": (lambda f: {"evaluate_test": True}, r"data\.evaluate_test=True: images has no test set"),
    "no path column": (lambda f: {"labeled": table(f, "file,label\na,b\n")}, r"no column 'path'"),
    "no such file": (lambda f: {"labeled": table(f, "path,label\nx.png,b\n")}, r"'x\.png' is not in"),
    "a path that is a folder": (lambda f: {"labeled": table(f, "path,label\ntest,b\n")}, "'test' is not in"),
    "an absolute path": (lambda f: {"labeled": table(f, "path,label\n/no.png,b\n")}, "'/no.png' is not in"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(folders, case):
    changes, message = BAD[case]
    with pytest.raises(UserError, match=message) as error:
        data(folders, **changes(folders)).setup()
    one_line(error)


def test_empty_class_folder_is_named(folders):
    (folders / "labeled" / "yellow").mkdir()
    with pytest.raises(UserError, match="its folder 'yellow' holds no image"):
        data(folders)


# ---- splits ----


def test_split_holds_wherever_the_folder_lies_and_says_when_files_were_added(folders, tmp_path_factory):
    d = data(folders)
    d.setup()
    split = folders / "split.json"
    write_split(d.split, split)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    folders.rename(elsewhere)
    moved = data(elsewhere, split=elsewhere / "split.json", split_seed=7)
    moved.setup()
    assert moved.split.sha256() == d.split.sha256()
    paint(elsewhere / "pool" / "new.png", (1, 2, 3))
    with pytest.raises(UserError, match=r"\(added, removed or changed\): bring them back, or draw") as error:
        data(elsewhere, split=elsewhere / "split.json").setup()
    one_line(error)


# ---- prediction ----


def test_a_folder_can_be_predicted(folders):
    for i in range(3):
        paint(folders / "new" / f"{i}.png", (i, 0, 0))
    (folders / "new" / "broken.png").write_text("")
    with pytest.warns(UserWarning, match=r"broken\.png"):
        new = data(folders).read_new(folders / "new")
    assert new.source.fetch(torch.arange(3))[:, 0, 0, 0].tolist() == [0, 1, 2]
    names = [p.rsplit("/", 1)[1] for p in new.names]
    assert sorted(names) == ["0.png", "1.png", "2.png", "broken.png"]
    assert [names[row] for row in new.rows.tolist()] == ["0.png", "1.png", "2.png"]


def test_without_a_test_set_there_is_nothing_to_test(folders):
    with pytest.raises(UserError, match=r"data\.test: images has no test set"):
        data(folders).setup("test")


def test_a_person_sees_the_files_and_not_what_the_network_sees(folders):
    Image.new("L", (900, 600), 90).save(folders / "pool" / "large.png")
    d = data(folders)
    d.setup()
    source = d.sets["unlabeled"].source
    names = dict(zip(source.names(d.sets["unlabeled"].rows), d.sets["unlabeled"].rows.tolist(), strict=True))
    assert "pool/b/c/2.png" in names
    assert any(name.startswith("labeled/red/") for name in names)
    assert source.folder == str(folders)
    chosen = torch.tensor([names["pool/large.png"], names["pool/b/c/2.png"]])
    assert [image.size for image in source.thumbnails(chosen, 240)] == [(240, 160), (16, 40)]
    (folders / "pool" / "large.png").unlink()
    (kept,) = source.thumbnails(chosen[:1], 240)
    assert kept.size == (16, 16), "what was kept of it"
    assert kept.getpixel((3, 3)) == (90, 90, 90)


def test_files_without_a_folder_in_common_have_whole_paths(folders, monkeypatch):
    monkeypatch.chdir(folders)
    d = data(folders, labeled="labeled")
    d.setup()
    source = d.sets["unlabeled"].source
    assert source.folder == ""
    assert source.names(d.sets["unlabeled"].rows) == source.describe(d.sets["unlabeled"].rows)
