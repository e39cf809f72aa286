"""A pool that streams: every example known by its number, in every epoch, process, worker and resumed run."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from PIL import Image

from ssl_weighting.app.cli import main
from ssl_weighting.data import Stream
from ssl_weighting.data.source import identity
from ssl_weighting.data.streamed import StreamedImages
from ssl_weighting.errors import UserError

POOL, SHARDS = 60, 4


def png(number):
    """A plain image that says which one it is."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (number, 255 - number, 7)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes of six images, and the same pool of 60 as WebDataset shards and as parquet."""
    for name, colour in (("cat", "red"), ("dog", "blue")):
        for i in range(6):
            path = tmp_path / "labeled" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16 + i, 16), colour).save(path)
    part = POOL // SHARDS
    for shard in range(SHARDS):
        numbers = range(shard * part, (shard + 1) * part)
        with tarfile.open(tmp_path / f"pool-{shard}.tar", "w") as tar:
            for number in numbers:
                info = tarfile.TarInfo(f"{number:04}.png")
                info.size = len(png(number))
                tar.addfile(info, io.BytesIO(png(number)))
        images = pa.array([{"bytes": png(n), "path": None} for n in numbers])
        pq.write_table(
            pa.table({"number": list(numbers), "picture": images}), tmp_path / f"pool-{shard}.parquet"
        )
    return tmp_path


def data(folder, pool="pool-*.tar", **changes):
    given = {
        "labeled": folder / "labeled",
        "pool": str(folder / pool),
        "pool_size": POOL,
        "size": 16,
        "block": 8,
    }
    module = StreamedImages(**(given | {"num_validation": 4, "split_seed": 0} | changes))
    module.setup()
    return module


def numbers_of(batch, first):
    """What the pictures say, of a batch's examples in the stream; and what their rows of Λ say."""
    streamed = batch.row >= first
    return batch.inputs[streamed][:, 0, 5, 5].tolist(), (batch.row[streamed] - first).tolist()


def batches(module, count, start=0, rank=0, processes=1):
    size = len(module.sets["unlabeled"])
    loaders = {
        name: module._loader(
            "unlabeled",
            Stream(size, batch, "0", name, start, start + count, rank, processes, module.pool_block),
        )
        for name, batch in (("a", 7), ("b", 3))
    }
    return [batch for batch, _, _ in CombinedLoader(loaders, "min_size")]


@pytest.mark.parametrize(
    ("pool", "more"), [("pool-*.tar", {}), ("pool-*.parquet", {"image_column": "picture"})]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_is_the_example_of_its_number(folder, pool, more, workers):
    module = data(folder, pool, num_workers=workers, **more)
    own = len(module.sets["unlabeled"]) - POOL
    assert own == 8  # the labelled images that do not validate
    seen = []
    for batch in batches(module, 20):  # two epochs of the one stream, not yet one of the other
        for name in "ab":
            shown, rows = numbers_of(batch[name], own)
            assert shown == rows
        seen += batch["a"].row.tolist()
    assert sorted(seen[: POOL + own]) == list(range(POOL + own))
    assert seen[: POOL + own] != sorted(seen[: POOL + own])


def test_a_resumed_run_and_several_processes_get_the_same_examples(folder):
    module = data(folder)
    whole = batches(module, 12)
    for batch, again in zip(whole[5:], batches(data(folder), 7, start=5), strict=True):
        assert batch["a"].row.equal(again["a"].row)
        assert batch["a"].inputs.equal(again["a"].inputs)
    one = Stream(68, 14, 0, "x", stop=9, block=8)
    two = [Stream(68, 7, 0, "x", stop=9, rank=rank, world_size=2, block=8) for rank in range(2)]
    for number in range(9):
        assert one.batch(number).tolist() == [*two[0].batch(number).tolist(), *two[1].batch(number).tolist()]


def test_blocks_are_read_once_an_epoch(folder):
    """Both streams of a run together: no example is read again because the other one was elsewhere."""
    module = data(folder)
    reader = module.sets["unlabeled"].source.reader
    reader._cursors.clear()
    read = []

    class Counted:
        def skip(self, count):
            read.append(("skip", count))
            self.rest = reader.given.skip(count)
            return self

        def iter(self, size):
            return (read.append("block") or block for block in self.rest.iter(size))

    reader.given, reader.stream = reader.stream, Counted()
    batches(module, 9)  # 63 examples of one stream, 27 of the other
    assert len([event for event in read if event != "block"]) <= 2
    assert read.count("block") <= 8 + 4


def test_in_order_the_pool_is_read_once(folder):
    module = data(folder, evaluation_batch_size=9)
    shown = torch.cat([batch.inputs[:, 0, 5, 5] for batch in module.in_order("unlabeled")])
    assert shown[8:].tolist() == list(range(POOL))


def test_a_damaged_example_is_grey_and_named(folder):
    with tarfile.open(folder / "pool-9.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("0.png"))
    module = data(folder, pool_size=POOL + 1)
    unlabeled = module.sets["unlabeled"]
    with pytest.warns(UserWarning, match=f"example {POOL} is damaged"):
        batch = unlabeled.__getitems__([len(unlabeled) - 1])
    assert (batch.inputs == 128).all()


def test_no_file_that_a_stream_names_is_opened(folder):
    images = pa.array([{"bytes": None, "path": str(folder / "labeled/cat/0.png")}])
    pq.write_table(pa.table({"picture": images}), folder / "names.parquet")
    with pytest.raises(UserError, match="is the name of a file"):
        data(folder, "names.parquet", image_column="picture", pool_size=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pool_size": 61}, "ends after 60 examples; give --data.pool_size 60"),
        ({"pool_size": 0}, "data.pool_size=0"),
        ({"block": 0}, "data.block=0"),
        ({"pool": "none-*.tar"}, "no such file"),
        ({"pool": "none.parquet"}, "no such file"),
        ({"pool": "pool-0.*"}, "give .tar or .parquet"),
        ({"image_column": "jpg"}, "has the columns"),
        ({"pool": "pool-*.parquet"}, "--data.image_column"),
        ({"pool": "pool-*.parquet", "image_column": "number"}, "holds no images"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, changes, words):
    def last():
        pool = data(folder, **changes).sets["unlabeled"]
        return pool.__getitems__([len(pool) - 1])

    with pytest.raises(UserError, match=words) as error:
        last()
    assert "\n" not in str(error.value)


def test_files_that_changed_are_another_data_set(folder):
    before = data(folder).split.checksum
    assert before == data(folder).split.checksum
    assert before != data(folder, pool_size=POOL - 1).split.checksum
    with tarfile.open(folder / "pool-3.tar", "a") as tar:
        more = tarfile.TarInfo("more.txt")
        more.size = tarfile.RECORDSIZE
        tar.addfile(more, io.BytesIO(bytes(more.size)))
    assert before != data(folder).split.checksum


RUN = {
    "data": "StreamedImages",
    "data.labeled": "labeled",
    "data.pool": "pool-*.tar",
    "data.pool_size": POOL,
    "data.block": 8,
    "data.size": 16,
    "data.num_labeled": "null",
    "data.num_validation": 4,
    "data.unlabeled_batch_size": 16,
    "data.labeled_batch_size": 4,
    "model.algorithm": "UDA",
    "model.backbone": "SmallConvNet",
    "model.backbone.channels": "[4,4]",
    "model.weighting.inner_steps": 1,
    "model.weighting.warmup_steps": 0,
    "trainer.max_steps": 12,
    "trainer.val_check_interval": 6,
}


def fit(**changes):
    return main(
        ["fit", *(word for key, value in (RUN | changes).items() for word in (f"--{key}", str(value)))]
    )


def test_a_data_worker_that_meets_the_end_says_so_in_one_line(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert fit(**{"data.pool_size": POOL + 5, "data.num_workers": 1}) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert (
        line
        == f"error: data.pool=pool-*.tar: ends after {POOL} examples; give --data.pool_size {POOL}, or less"
    )


def test_a_run_with_weights_for_what_streams(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert fit(**{"model.weighting.update_masked": "true"}) == 0
    (run,) = (folder / "runs").glob("*/*")
    assert main(["weights", str(run), "--export", "all.parquet"]) == 0
    table = pq.read_table("all.parquet").to_pydict()
    assert table["path"][8:] == [f"example {number} of the stream" for number in range(POOL)]
    assert max(table["updates"]) > 0
    assert "example" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert " of the stream</p>" in page
    assert "data:image/png" in page
    assert "trained with its label" in page
    assert "Telling good from bad" not in page, "there are no labels but those that were trained with"


def test_thumbnails_show_the_whole_image(folder):
    source = data(folder).sets["unlabeled"].source
    first = len(source.given.labels)
    shown = source.thumbnails(torch.tensor([first + 31, 5, first + 2]), 240)
    assert [image.size for image in shown] == [(16, 16), (21, 16), (16, 16)]
    assert [image.getpixel((0, 0)) for image in shown] == [(31, 224, 7), (255, 0, 0), (2, 253, 7)]
    assert source.names(torch.tensor([first + 31, 5])) == ["example 31 of the stream", "cat/5.png"]
    assert source.folder == str(folder / "labeled")


def test_what_its_pixels_are_made_of_has_a_name(folder):
    """By which features of a frozen encoder are kept."""
    first = identity(data(folder).load(True))
    assert identity(data(folder).load(True)) == first
    assert identity(data(folder, size=10).load(True)) != first
