"""A run speaks for itself: it is predicted, tested and gone on with by its folder alone."""

import csv
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from made_up import write_films
from PIL import Image

import ssl_weighting
from ssl_weighting.app.cli import main
from ssl_weighting.errors import UserError
from ssl_weighting.module import SSLModule

BUDGET = [
    *("--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu"),
    *(
        "--model.weighting.inner_steps",
        "1",
        "--model.weighting.warmup_steps",
        "1",
        "--trainer.log_every_n_steps",
        "1",
    ),
]
FIVE = [
    *("--data.normalise_by", "imagenet", "--data.size", "12", "--model.algorithm", "FixMatch"),
    *("--model.backbone.channels", "[4,4]", "--data.labeled_batch_size", "4"),
]
"""Options that are not the recipe's."""


def paint(folder, count, hue, ending="png"):
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(hue)
    for number in range(count):
        pixels = draw.integers(hue, hue + 60, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{ending}")


def make(folder):
    """A folder with pictures, a recipe of ``init`` and a run with five overrides."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(folder)
        for hue, name in ((20, "rose"), (150, "tulip")):
            paint(folder / "labelled" / name, 12, hue)
            paint(folder / "held out" / name, 4, hue)
        paint(folder / "pool", 20, 90)
        paint(folder / "new", 5, 150, "webp")
        given = ["--images", "labelled", "--unlabelled", "pool", "--test", "held out", "--out", "f.yaml"]
        assert main(["init", *given]) == 0
        aside = ["--data.split", "null", "--data.num_validation", "6"]
        assert main(["fit", "--config", "f.yaml", *BUDGET, *FIVE, *aside]) == 0


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flowers")
    make(folder)
    return folder


@pytest.fixture
def here(flowers, tmp_path, monkeypatch):
    """A copy whose runs may be changed; they name the data of the original."""
    shutil.copytree(flowers, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """One whose data may be changed, too."""
    make(tmp_path)
    monkeypatch.chdir(tmp_path)


def read_csv(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def only_run(name="f"):
    (run,) = Path("runs", name).iterdir()
    return run


def last(run, column):
    rows = read_csv(run / "metrics.csv")
    return float([row[column] for row in rows if row[column]][-1])


def predicted(run, name):
    return pq.read_table(run / f"predictions-{name}.parquet").to_pydict()


def training_says(run, part):
    """Probabilities of a list by the module of the run, as training evaluated them."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["ssl_weighting"]["memory"]["class_names"] == ["rose", "tulip"]
    found = []
    module_evaluate = SSLModule._evaluate

    def evaluate(self, batch, name):
        if name == part:
            found.append(self.probabilities(self.data.view(batch.inputs, ())))
        module_evaluate(self, batch, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SSLModule, "_evaluate", evaluate)
        assert main(["resume", str(run)]) == 0  # nothing is left to train: it evaluates
    return torch.cat(found).numpy()


@pytest.mark.filterwarnings("ignore")
def test_bit_for_bit_what_training_evaluated(here, capsys):
    run = only_run()
    expected = training_says(run, "test")
    assert main(["predict", str(run)]) == 0
    table = predicted(run, "test")
    found = np.stack([table["probability_rose"], table["probability_tulip"]], -1).astype(np.float32)
    assert np.array_equal(found, expected)
    capsys.readouterr()
    for command, part in (("test", "test"), ("validate", "validation")):
        assert main([command, "runs/f"]) == 0
        assert f"{part} error: {100 * last(run, f'{part}/error'):.2f} %" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_new_pictures_without_the_training_data(fresh, capsys):
    run = only_run()
    shutil.copy(run / "checkpoints" / "last.ckpt", "model.ckpt")
    for name in ("labelled", "pool", "held out", "f.yaml", "f.split.json"):
        path = Path(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    Path("new", "broken.png").write_text("no image")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["predict", "runs/f", "--on", "new"]) == 0
    printed = capsys.readouterr()
    assert "6 examples, 1 of them could not be read" in printed.out
    assert "1 of 6 images cannot be read and have an empty row (the first: " in printed.err
    table = predicted(run, "new")
    assert len(table["id"]) == 6
    assert [Path(name).name for name in table["id"]][-1] == "broken.png"
    assert [c is None for c in table["class"]] == [False] * 5 + [True]
    assert main(["predict", "model.ckpt", "--on", "new", "--out", "by_file.csv"]) == 0
    rows = read_csv(Path("by_file.csv"))
    assert [row["class"] for row in rows] == [c or "" for c in table["class"]]
    Path("list.csv").write_text("path\nnew/3.webp\nnew/0.webp\nnew/3.webp\n")
    assert main(["predict", "runs/f", "--on", "list.csv"]) == 0
    listed = predicted(run, "list")["probability_rose"]
    assert listed == [table["probability_rose"][row] for row in (3, 0, 3)]
    assert main(["test", "runs/f"]) == 2
    assert "held out" in capsys.readouterr().err
    Path("no pictures").mkdir()
    assert main(["predict", "runs/f", "--on", "no pictures"]) == 2
    assert "--on no pictures: holds no image (.jpg" in capsys.readouterr().err
    Path("texts.csv").write_text("text,label\na,b\n")
    assert main(["predict", "runs/f", "--on", "texts.csv"]) == 2
    said = capsys.readouterr().err
    assert "--on texts.csv: has no column 'path' but text, label; the run was trained on images" in said


@pytest.mark.filterwarnings("ignore")
def test_a_set_is_not_a_folder_of_its_name(here, capsys):
    paint(Path("test"), 3, 20)
    assert main(["predict", "runs/f", "--on", "test"]) == 0
    assert "--on ./test is the folder" in capsys.readouterr().err
    assert len(predicted(only_run(), "test")["id"]) == 8
    assert main(["predict", "runs/f", "--on", "./test"]) == 0
    assert len(predicted(only_run(), "test-2")["id"]) == 3, "predictions of before stay"
    assert len(predicted(only_run(), "test")["id"]) == 8


@pytest.mark.filterwarnings("ignore")
def test_the_pool_may_grow_and_the_images_may_get_another_size(fresh, capsys):
    paint(Path("pool", "more"), 3, 90)
    assert main(["predict", "runs/f", "--on", "pool"]) == 0
    assert len(predicted(only_run(), "pool")["id"]) == 23
    assert main(["validate", "runs/f"]) == 2, "the list of the run cannot be found again"
    assert "added, removed or changed" in capsys.readouterr().err
    shutil.rmtree(Path("pool", "more"))
    assert main(["fit", "--config", "f.yaml", *BUDGET, "--data.size", "16"]) == 0


def test_options_that_a_split_decides_are_refused(here, capsys):
    for option in ("num_labeled", "num_validation"):
        assert main(["fit", "--config", "f.yaml", *BUDGET, f"--data.{option}", "2"]) == 2
        said = capsys.readouterr().err
        assert f"data.{option}=2: has no effect, for data.split=" in said
        assert "--data.split null" in said
    assert main(["resume", "runs/f", "--data.num_labeled", "4"]) == 2
    assert "data.num_labeled=4: has no effect" in capsys.readouterr().err
    own = yaml.safe_load((only_run() / "config.yaml").read_text())["data"]["init_args"]["num_labeled"]
    assert main(["resume", "runs/f", "--data.num_labeled", "null" if own is None else str(own)]) == 0


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_goes_on_as_itself(here, capsys):
    run = only_run()
    more = ["--trainer.max_steps", "6", "--model.theta.schedule", "constant"]
    assert main(["fit", "--config", "f.yaml", *more, "--ckpt_path", "last"]) == 0
    said = capsys.readouterr().err
    assert (
        f"resume: {run.resolve()} goes on at step 4 with its own configuration; the recipe f is not read"
        in said
    )
    assert "trainer.max_steps 6 instead of 4" in said
    now, before = (yaml.safe_load((run / f"config{of}.yaml").read_text()) for of in ("", "-until-4"))
    assert now["model"]["algorithm"]["class_path"].endswith("FixMatch"), (
        "as it was begun, not as the recipe says"
    )
    assert now["data"]["init_args"]["size"] == 12
    assert (before["trainer"]["max_steps"], now["trainer"]["max_steps"]) == (4, 6)
    assert [p.name for p in run.glob("config*.yaml") if p.name != "config.yaml"] == ["config-until-4.yaml"]
    steps = [int(row["step"]) for row in read_csv(run / "metrics.csv")]
    assert max(steps) == 6


@pytest.mark.filterwarnings("ignore")
def test_a_complete_run_says_so(here, capsys):
    run = only_run().resolve()
    mend = f"nothing is left to train; ssl-weighting resume {run} --trainer.max_steps 8 trains longer"
    assert main(["resume", "runs/f", "--trainer.max_steps", "3"]) == 2
    expected = f"error: trainer.max_steps=3: the run is complete at step 4 and {mend}"
    assert capsys.readouterr().err.strip() == expected
    for typed in ([], ["--trainer.max_steps", "4"]):
        assert main(["resume", "runs/f", *typed]) == 0
        said = capsys.readouterr().err
        assert f"resume: the run is complete at step 4 and {mend}; evaluated as it is" in said
        assert "goes on" not in said


@pytest.mark.filterwarnings("ignore")
def test_last_is_that_of_the_seed_that_is_typed(here, capsys):
    assert main(["fit", "--config", "f.yaml", *BUDGET, "--seed_everything", "7"]) == 0
    first, second = sorted(Path("runs/f").iterdir(), key=lambda p: "_seed7_" in p.name)
    more = ["--trainer.max_steps", "5"]
    assert main(["fit", "--config", "f.yaml", *more, "--seed_everything", "0", "--ckpt_path", "last"]) == 0
    steps = [
        torch.load(r / "checkpoints/last.ckpt", weights_only=True)["global_step"] for r in (first, second)
    ]
    assert steps == [5, 4]
    assert main(["fit", "--config", "f.yaml", "--seed_everything", "3", "--ckpt_path", "last"]) == 2
    assert "no run of f and seed 3" in capsys.readouterr().err
    assert main(["resume", str(second), "--seed_everything", "3"]) == 2
    assert "was begun with 7" in capsys.readouterr().err


def test_several_runs_have_to_be_told_apart(here, capsys):
    run = only_run()
    shutil.copytree(run, run.with_name("another"))
    assert main(["predict", "runs/f", "--on", "new"]) == 2
    said = capsys.readouterr().err
    assert "holds 2 runs" in said
    assert "another" in said
    for wrong, expected in (
        ("runs", "did you mean runs/f/"),
        ("nowhere", "no such folder"),
        ("pool", "neither a run"),
    ):
        assert main(["test", wrong]) == 2
        assert expected in capsys.readouterr().err


MISTAKES = {
    "--ckpt_path runs/f/x/checkpoints/last.ckpt": "ssl-weighting predict runs/f/x",
    "--config f.yaml": "knows its own configuration",
    "RUN --trainer.devices 2": "--trainer.devices: is for training",
    "RUN --onn new": "--onn: no such option",
    "RUN other": "2 runs are given",
    "RUN --on": "--on: a value has to follow",
    "RUN --on new --on pool": "--on pool: given before, as new",
    "RUN --on new --out new.txt": "ends in none of .parquet, .csv",
    "RUN --on new --out f.yaml.csv/x.csv": "no such folder",
    "RUN --on nothing": "--on nothing: no such folder or table",
    "RUN --on f.yaml": "not a folder, nor a table",
    "RUN --model.backbone.channels [8,8] --on new": "does not fit the checkpoint",
    "RUN --model.backbone.chanels [8,8] --on new": "channels",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_mistakes_are_answered_in_one_line(here, capsys, typed):
    words = [str(only_run()) if word == "RUN" else word for word in typed.split()]
    assert main(["predict", *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert MISTAKES[typed] in said


@pytest.mark.filterwarnings("ignore")
def test_what_is_not_as_in_the_run_is_said(fresh, capsys):
    shutil.move("labelled", "moved")
    assert main(["validate", "runs/f", "--data.labeled", "moved"]) == 0
    assert "not as in the run: data.labeled moved instead of" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_from_python(here, capsys):
    assert main(["predict", "runs/f", "--on", "new"]) == 0
    table = predicted(only_run(), "new")
    model = ssl_weighting.load("runs/f")
    assert model.class_names == ["rose", "tulip"]
    assert model.predict("new") == table["class"]
    paths = sorted(Path("new").iterdir())
    assert model.predict(paths) == table["class"]
    found = model.probabilities(list(map(str, paths)))
    assert found.dtype == np.float32
    assert np.allclose(found[:, 0], table["probability_rose"], atol=1e-6)
    pixels = torch.randint(256, (3, 3, 12, 12), dtype=torch.uint8)
    assert model.probabilities(pixels).shape == (3, 2)
    assert model.predict([]) == []
    with pytest.raises(UserError, match=r"^examples=.nowhere.: no such folder.* in a list: \['nowhere'\]$"):
        model.predict("nowhere")
    with pytest.raises(UserError, match=r'^run="nowhere": no such folder'):
        ssl_weighting.load("nowhere")
    with pytest.raises(UserError, match=r"uint8 of shape \(n, 3, 12, 12\)"):
        model.predict(torch.zeros(2, 3, 5, 5))
    with pytest.raises(UserError, match=r"ssl_weighting\.load\(RUN\)"):
        SSLModule.load_from_checkpoint(only_run() / "checkpoints" / "last.ckpt")


def test_arrays_for_a_set_without_files(tiny_run):
    model = ssl_weighting.load(tiny_run)
    found = model.probabilities(np.zeros((4, 1, 8, 8), np.uint8))
    assert found.shape == (4, 10)
    assert np.allclose(found.sum(-1), 1, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_new_texts_need_no_label(tiny_bert, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_films(Path("films.csv"), "up", "down")
    assert main(["init", "--text", "films.csv", "--encoder", str(tiny_bert)]) == 0
    assert main(["fit", "--config", "films.yaml", *BUDGET]) == 0
    Path("films.csv").unlink()
    texts = ["a good film", "", "bad", "a good film"]
    pq.write_table(pa.table({"text": texts}), "new.parquet")
    Path("half.csv").write_text("label,text\nup,a good film\n,bad\nother,bad\n")
    assert main(["predict", "runs/films", "--on", "new.parquet"]) == 0
    table = predicted(only_run("films"), "new")
    assert table["id"] == texts
    assert table["index"] == [0, 1, 2, 3]
    assert table["probability_up"][0] == table["probability_up"][3]
    assert main(["predict", "runs/films", "--on", "half.csv", "--out", "out.csv"]) == 0
    assert [row["id"] for row in read_csv(Path("out.csv"))] == ["a good film", "bad", "bad"]
    assert main(["predict", "runs/films", "--on", "half.csv", "--out", "out.csv"]) == 2
    assert "is there already" in capsys.readouterr().err
    model = ssl_weighting.load("runs/films")
    with pytest.raises(UserError, match=r"single texts and files are given in a list: \['a good film'\]"):
        model.predict("a good film")
    assert main(["test", "runs/films"]) == 2
    said = capsys.readouterr().err
    assert "--data.test FOLDER|TABLE, or look at the validation error with ssl-weighting validate RUN" in said
    assert np.allclose(model.probabilities(texts)[:, 1], table["probability_up"], atol=1e-6)
    assert model.probabilities([]).shape == (0, 2)
    Path("other.csv").write_text("words\nx\n")
    assert main(["predict", "runs/films", "--on", "other.csv"]) == 2
    assert "has no column 'text' but words; name the column" in capsys.readouterr().err
