"""Near duplicates: what is found against brute force, what is said, and what a split drops."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_weighting.data import near_duplicates
from ssl_weighting.data.corrupted import CorruptedDigits
from ssl_weighting.data.near_duplicates import (
    ALIKE,
    Descriptors,
    Pairs,
    counted,
    described,
    find_pairs,
    leaked,
    leaks,
    nearest,
    of_images,
    of_texts,
    of_vectors,
)
from ssl_weighting.data.source import ExampleSet, InMemory
from ssl_weighting.data.split import read_split, write_split
from ssl_weighting.data.synthetic import Synthetic
from ssl_weighting.data.tensors import TensorData
from ssl_weighting.errors import DataWarning, UserError


def directions(*shape, seed=0):
    return torch.nn.functional.normalize(
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def smooth(n, side=32, seed=0):
    """Random images (n, 3, side, side) without detail, as photographs are."""
    draw = torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    images = torch.nn.functional.interpolate(draw, size=side, mode="bicubic")
    return (128 + 40 * images).clamp(0, 255).to(torch.uint8)


# ---- what is found ----


@pytest.mark.parametrize("block", [3, 7, 100])
@pytest.mark.parametrize("same", [False, True])
def test_blocks_give_what_brute_force_gives(monkeypatch, block, same):
    monkeypatch.setattr(near_duplicates, "BLOCK", block)
    keys = directions(20, 3, 5)
    queries = keys if same else directions(11, 3, 5, seed=1)
    cosines = torch.stack([queries[:, 1] @ keys[:, k].T for k in range(3)]).amax(0)
    if same:
        cosines.fill_diagonal_(-2)
    found, which = nearest(queries, keys, same)
    torch.testing.assert_close(found, cosines.amax(1))
    assert torch.equal(which, cosines.argmax(1))


def test_an_example_alone_has_no_neighbour():
    one = directions(1, 1, 4)
    assert [x.tolist() for x in nearest(one, one, same=True)] == [[-1.0], [-1]]


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "jpeg", quality=70)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def scaled(image, side):
    return torch.nn.functional.interpolate(image[None].float(), size=side, mode="bilinear", antialias=True)[0]


@pytest.mark.parametrize(
    "change",
    [
        jpeg,
        lambda image: (image * 0.95).to(torch.uint8),
        lambda image: torch.roll(image, (1, -1), (1, 2)),
        lambda image: scaled(scaled(image, 28), 32),
    ],
)
def test_changed_images_are_found_and_others_are_not(change):
    images = smooth(40)
    found, which = nearest(
        of_images(torch.stack([change(image) for image in images[:20]])), of_images(images)
    )
    assert which.tolist() == list(range(20))
    assert found.min() >= ALIKE["images"]
    assert nearest(of_images(images[:20]), of_images(images[20:]))[0].max() < 0.99


def test_colours_count_and_brightness_does_not():
    shape = smooth(1)[:, :1].float() / 255
    red, green = (
        torch.cat([shape * factor for factor in colour], 1) for colour in ((1, 0.2, 0.2), (0.2, 1, 0.2))
    )
    assert nearest(of_images(red), of_images(green))[0] < 0.9
    assert nearest(of_images(red), of_images(red * 0.5 + 0.1))[0] > ALIKE["images"]


def test_images_of_one_grey_are_like_none():
    flat = of_images(torch.full((2, 1, 8, 8), 7, dtype=torch.uint8))
    assert flat.shape == (2, 1, 68)
    assert nearest(flat, flat, same=True)[0].tolist() == [0, 0]


def test_texts():
    texts = [
        "A quiet film about a lighthouse, its keeper and the sea, and the best that I have seen this year.",
        "Nobody in this comedy is funny, the jokes are old and the songs are worse; I left after half an hour.",
        "",
    ]
    changed = [texts[0].upper().replace(",", ""), texts[1].replace("after half", "after about half"), "..."]
    found, which = nearest(of_texts(changed), of_texts(texts))
    assert (found[:2] >= ALIKE["texts"]).all()
    assert which[:2].tolist() == [0, 1]
    assert found[2] == 0
    assert nearest(of_texts(texts[:1]), of_texts(texts[1:]))[0] < 0.4
    assert of_texts([]).shape == (0, 1, near_duplicates.BUCKETS)


def test_vectors_are_compared_from_their_mean():
    vectors = 100 + torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    described_ = of_vectors(vectors, vectors.mean(0))
    assert nearest(described_, described_, same=True)[0].max() < 0.8
    moved = of_vectors(vectors + 0.01, vectors.mean(0))
    assert (nearest(moved, described_)[0] > ALIKE["vectors"]).all()


# ---- parts of a data set ----


def sets_of(images, labeled, pool, tested):
    source, test = InMemory(images, torch.zeros(len(images))), InMemory(tested, torch.zeros(len(tested)))
    parts = {"labeled": labeled, "validation": [], "unlabeled": labeled + pool}
    made = {
        name: ExampleSet(source, torch.tensor(rows, dtype=torch.int64), torch.zeros(len(rows)))
        for name, rows in parts.items()
    }
    return made | {"test": ExampleSet(test, torch.arange(len(tested)), torch.zeros(len(tested)))}


def test_all_pairs_of_parts_are_searched_and_counted():
    images = smooth(8)
    images = torch.cat((images, (images[:4] * 0.97).to(torch.uint8)))  # 8 to 11 are like 0 to 3
    sets = sets_of(
        images, [0, 4], [1, 2, 5, 8, 9], torch.cat((images[10:11], smooth(1, seed=5), images[4:5]))
    )
    pairs = find_pairs(described(sets))
    found = {
        (some.part, some.near): sorted(zip(some.rows.tolist(), some.nearest.tolist(), strict=True))
        for some in pairs
    }
    assert found == {
        ("unlabeled", "labeled"): [(8, 0)],
        ("unlabeled", "unlabeled"): [(1, 9), (9, 1)],
        ("test", "labeled"): [(2, 4)],
        ("test", "unlabeled"): [(0, 2)],
    }
    assert counted(pairs) == [
        "1 test example in the pool",
        "1 test example among the labelled examples",
        "1 of the pool among the labelled examples",
        "2 inside the pool",
    ]
    assert leaks(pairs) == 1
    assert leaked(pairs, sets).startswith(
        "data: 1 of 3 test examples are in the pool as well, or nearly so (first: row 0, like row 2): "
    )
    assert leaks([]) == 0
    assert leaked([], sets) == ""
    again = Pairs.of("test", "unlabeled", [(3, 1, 0.5)])
    assert (again.rows.tolist(), again.nearest.tolist(), again.cosines.tolist()) == ([3], [1], [0.5])


@pytest.mark.parametrize("known", [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
def test_the_near_duplicates_of_the_digits(known):
    data = CorruptedDigits(
        num_labeled=10,
        num_validation=100,
        known_classes=known,
        pool_classes=[14],
        foreign_fraction=0.5,
        split_seed=1,
    )
    data.setup("fit")
    descriptors = described(data.sets)
    assert isinstance(descriptors, Descriptors)
    found = torch.cat([some.rows for some in find_pairs(descriptors) if some.part == "unlabeled"]).unique()
    copies = data.sets["unlabeled"].source.labels[found] == 14
    pool = data.sets["unlabeled"].source.labels[descriptors.rows["unlabeled"]] == 14
    assert copies.sum() == pool.sum()
    assert (~copies).sum() <= 15  # the ten originals, and digits that are nearly alike


def test_what_is_not_searched_says_why(monkeypatch):
    points = Synthetic()
    points.setup("fit")
    assert described(points.sets) == "not looked for in inputs of 2 numbers, fewer than 32"
    monkeypatch.setattr(near_duplicates, "MOST", 10)
    sets = sets_of(smooth(12), [0, 1], [*range(2, 12)], smooth(3))
    assert described(sets) == "not looked for among 15 examples, more than 10"
    sets["unlabeled"].source.reader = None
    monkeypatch.undo()
    assert described(sets) == "not looked for in a pool that streams"


# ---- what a split drops ----


def images_data(**options):
    images = smooth(30)
    test = torch.cat(
        ((images[20:23] * 0.97).to(torch.uint8), (images[:1] * 0.97).to(torch.uint8), smooth(4, seed=3))
    )
    labels = torch.tensor([0, 1] * 4 + [-1] * 22)
    return TensorData(
        images, labels, (test, torch.tensor([0, 1] * 4)), num_validation=0, split_seed=0, **options
    )


def test_test_leaks_are_dropped_said_and_kept_in_the_file(tmp_path):
    data = images_data(drop_test_leaks=True)
    with pytest.warns(DataWarning, match="drop_test_leaks=true: 3 of 30 examples are left out of the pool"):
        data.setup("fit")
    assert data.split.dropped.tolist() == [20, 21, 22]  # not row 0, which is labelled
    assert data.num_unlabeled == 27
    assert torch.equal(data.split.unlabeled, data.sets["unlabeled"].rows)
    write_split(data.split, tmp_path / "split.json")
    assert json.loads((tmp_path / "split.json").read_text())["dropped"] == [20, 21, 22]
    again = images_data(drop_test_leaks=True, split=tmp_path / "split.json")
    again.setup("fit")
    assert again.split.sha256() == data.split.sha256()
    assert again.split.dropped.tolist() == [20, 21, 22]
    left = find_pairs(described(again.sets | {"test": data.sets["test"]}))
    assert [(some.part, some.near) for some in left if some.part == "test"] == [("test", "labeled")]


def test_without_the_option_nobody_looks(tmp_path):
    data = images_data()
    data.setup("fit")
    assert data.split.dropped is None
    assert data.num_unlabeled == 30
    write_split(data.split, tmp_path / "split.json")
    assert read_split(tmp_path / "split.json", data.split.data_set, data.split.checksum).dropped is None
    with pytest.raises(
        UserError, match=r"^data.split=.*drawn without data.drop_test_leaks; draw another"
    ) as error:
        images_data(drop_test_leaks=True, split=tmp_path / "split.json").setup("fit")
    assert "\n" not in str(error.value)


def test_leaks_are_not_dropped_where_nothing_can_be_compared():
    labels = torch.tensor([0, 1] * 4 + [-1] * 22)
    with pytest.raises(UserError, match=r"^data.drop_test_leaks=True: tensors has no test set"):
        TensorData(smooth(30), labels, drop_test_leaks=True)
    few = TensorData(
        torch.randn(30, 3),
        labels,
        (torch.randn(2, 3), torch.tensor([0, 1])),
        num_validation=0,
        drop_test_leaks=True,
    )
    with pytest.raises(
        UserError, match=r"^data.drop_test_leaks=true: near duplicates are not looked for in inputs of 3"
    ):
        few.setup("fit")
    every = TensorData(
        smooth(10),
        labels[:10],
        ((smooth(10) * 0.97).to(torch.uint8), torch.tensor([0, 1] * 5)),
        num_validation=0,
        drop_test_leaks=True,
    )
    with pytest.raises(
        UserError, match=r"^data.drop_test_leaks=true: all 2 examples of the pool are near duplicates"
    ):
        every.setup("fit")
