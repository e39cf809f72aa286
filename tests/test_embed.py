"""Features of examples as a file, by the encoder of a run."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_up import paint
from PIL import Image

import ssl_weighting
from ssl_weighting.app import embed
from ssl_weighting.app.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on pictures of two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate("ab"):
        for i in range(8):
            paint(folder / "labelled" / name / f"{i}.png", 20 * number + i)
    for i in range(10):
        paint(folder / "pool" / f"{i}.png", 200 + i)
    options = {
        "data": "Images",
        "data.labeled": folder / "labelled",
        "data.unlabeled": folder / "pool",
        "data.size": 8,
        "data.num_validation": 4,
        "data.labeled_batch_size": 4,
        "data.unlabeled_batch_size": 4,
        "data.evaluation_batch_size": 3,
        "model.algorithm": "PseudoLabel",
        "model.backbone": "SmallConvNet",
        "model.backbone.channels": "[4,6]",
        "model.weighting.kind": "fixed",
        "trainer.max_steps": 1,
        "trainer.accelerator": "cpu",
        "runs": folder / "runs",
    }
    typed = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert main(["fit", *typed]) == 0
    (made,) = (folder / "runs").glob("*/*")
    return made


@pytest.fixture
def new(tmp_path, monkeypatch):
    """Seven pictures, of which the first, the fifth and the last cannot be read."""
    monkeypatch.chdir(tmp_path)
    Path("new").mkdir()
    for i in range(7):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"new/{i}.png")
    for i in (0, 4, 6):
        Path("new", f"{i}.png").write_text("no picture")


def test_new_pictures(run, new, capsys):
    assert main(["embed", str(run), "--on", "new"]) == 0
    printed = capsys.readouterr().out
    assert "embeddings-new.parquet: 7 examples of 6 features, 3 of them could not be read" in printed
    table = pq.read_table(run / "embeddings-new.parquet")
    assert table.schema.field("features").type == pa.list_(pa.float32(), 6)
    rows = table.to_pydict()
    assert rows["index"] == list(range(7))
    assert [Path(name).name for name in rows["id"]] == [f"{i}.png" for i in range(7)]
    assert [i for i, features in enumerate(rows["features"]) if features is None] == [0, 4, 6]
    model = ssl_weighting.load(run)
    expected = model.features("new")
    assert expected.shape == (7, 6) and expected.dtype == np.float32
    assert np.isnan(expected[[0, 4, 6]]).all()
    kept = [1, 2, 3, 5]
    assert np.allclose(np.array([rows["features"][i] for i in kept]), expected[kept], atol=1e-6)
    assert len(np.unique(expected[kept], axis=0)) == 4
    assert model.features([]).shape == (0, 6)


def test_a_list_of_the_run_is_written_in_groups(run, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "ROWS", 5)
    out = tmp_path / "pool.parquet"
    assert main(["embed", str(run), "--on", "unlabeled", "--out", str(out)]) == 0
    groups = pq.ParquetFile(out)
    sizes = [groups.metadata.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert len(sizes) > 1 and set(sizes[:-1]) == {6}
    frame = pd.read_parquet(out)
    assert np.stack(frame["features"]).shape == (len(frame), 6)
    assert np.stack(frame["features"]).dtype == np.float32
    assert main(["predict", str(run), "--on", "unlabeled", "--out", str(tmp_path / "p.parquet")]) == 0
    beside = pd.read_parquet(tmp_path / "p.parquet")
    assert list(frame["index"]) == list(beside["index"])
    assert list(frame["id"]) == list(beside["id"])


def test_features_are_the_averaged_networks(tiny_run, tmp_path):
    out = tmp_path / "test.parquet"
    assert main(["embed", str(tiny_run), "--out", str(out)]) == 0
    model = ssl_weighting.load(tiny_run)
    model.data.setup("test")
    part = model.data.sets["test"]
    with torch.inference_mode():
        expected = model.module.ema.model(model.data.view(part.raw(), ())).features
    frame = pd.read_parquet(out)
    assert np.allclose(np.stack(frame["features"]), expected.numpy(), atol=1e-5)


def test_the_same_again_is_one_file_and_another_has_its_own(run, new):
    for _ in range(2):
        assert main(["embed", str(run), "--on", "new"]) == 0
    assert not (run / "embeddings-new-2.parquet").exists()
    paint(Path("new", "8.png"), 400)
    assert main(["embed", str(run), "--on", "new"]) == 0
    assert len(pq.read_table(run / "embeddings-new-2.parquet")) == 8
    assert not list(run.glob(".new-*"))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--on", "nothing"], "--on nothing: no such folder or table"),
        (["--out", "x.csv"], "--out x.csv: does not end in .parquet; give such a name"),
        (["--out", "x/y.parquet"], "no such folder"),
        (["--onn", "new"], "--onn: no such option; embed takes --on"),
    ],
)
def test_mistakes_are_answered_in_one_line(run, new, capsys, typed, message):
    assert main(["embed", str(run), *typed]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and message in said


def test_help(capsys):
    assert main(["embed", "--help"]) == 0
    assert "usage: ssl-weighting embed RUN" in capsys.readouterr().out
