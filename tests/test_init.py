"""`init`: from somebody's data to a recipe and a split that run as they are."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from command import words
from made_up import write_films
from PIL import Image
from safetensors.torch import save_file

from ssl_weighting.app.cli import main
from ssl_weighting.app.init import encoders, timing
from ssl_weighting.app.runs import Run
from ssl_weighting.data import read_split
from ssl_weighting.data.images import Images

BUDGET = words(
    {
        "trainer.max_steps": 4,
        "trainer.val_check_interval": 2,
        "trainer.accelerator": "cpu",
        "model.weighting.warmup_steps": 1,
        "data.unlabeled_batch_size": 8,
        "data.labeled_batch_size": 4,
    }
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encoders, "IMAGE_ENCODERS", ())  # nothing is looked for, here or on a hub
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


def images(folder, names=("a cat", "dog: brown", "#fish"), each=10, side=20, ending="png", seed=0):
    draw = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = draw.integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.{ending}")


def recipe(name):
    return yaml.safe_load(Path(name).read_text(encoding="utf-8"))


def test_images_to_predictions_with_two_commands_and_no_edit(here, capsys):
    images(here / "labelled")
    images(here / "pool", names=("x",), each=25, ending="webp")
    images(here / "held out", names=("#fish", "a cat"), each=3)
    (here / "pool" / "x" / "broken.jpg").write_text("no image")
    options = ["--images", "labelled", "--unlabelled", "pool", "--test", "held out", "--out", "mine.yaml"]
    assert main(["init", *options]) == 0
    said = capsys.readouterr().out
    for expected in (
        "SmallConvNet",
        "broken.jpg",
        "#fish, a cat, dog: brown",
        "ssl-weighting fit --config mine.yaml",
    ):
        assert expected in said
    data = recipe("mine.yaml")["data"]["init_args"]
    module = Images(**{k: v for k, v in data.items() if k != "split"})
    with pytest.warns(UserWarning, match=r"broken\.jpg"):
        source = module.load(True)
    split = read_split(Path(data["split"]), "images", source.checksum())
    assert (len(split.labeled), len(split.validation), len(split.unlabeled)) == (30, 0, 55)
    assert data["size"] == 20
    (here / "pool" / "x" / "broken.jpg").unlink()  # it was left out, so that nothing changes
    assert main(["fit", "--config", "mine.yaml", *BUDGET]) == 0
    assert main(["predict", "runs/mine"]) == 0
    (run,) = Path("runs/mine").iterdir()
    table = pq.read_table(run / "predictions-test.parquet").to_pydict()
    names = ["#fish", "a cat", "dog: brown"]
    assert list(table) == ["index", "id", "class", "probability", *(f"probability_{name}" for name in names)]
    assert len(table["id"]) == 6
    assert all(Path(path).is_file() and "held out" in path for path in table["id"])
    for i, (name, probability) in enumerate(zip(table["class"], table["probability"], strict=True)):
        row = {n: table[f"probability_{n}"][i] for n in names}
        assert max(row, key=row.get) == name
        assert probability == row[name]
    assert main(["predict", "runs/mine", "--on", "pool"]) == 0
    assert len(pq.read_table(run / "predictions-pool.parquet")) == 25


def test_without_a_pool_some_labels_are_put_aside(here, capsys):
    images(here / "labelled", names=("0", "1", "10"), each=20)
    assert main(["init", "--images", "labelled"]) == 0
    data = recipe("labelled.yaml")["data"]["init_args"]
    assert (data["num_labeled"], data["flip"]) == (15, False)
    assert "no pool was given" in re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert main(["fit", "--config", "labelled.yaml", *BUDGET]) == 0


@pytest.mark.parametrize(
    ("sizes", "pool"), [((602, 2), 0), ((6, 1), 0), ((3, 3), 0), ((2, 2), 1), ((1, 9), 3), ((1, 1, 40), 0)]
)
def test_it_chooses_numbers_that_work(here, sizes, pool):
    for number, size in enumerate(sizes):
        images(here / "labelled", names=(f"c{number}",), each=size, side=8, seed=number)
    options = ["--images", "labelled"]
    if pool:
        images(here / "pool", names=("x",), each=pool, seed=9)
        options += ["--unlabelled", "pool"]
    assert main(["init", *options]) == 0
    data = recipe("labelled.yaml")["data"]["init_args"]
    module = Images(**data)
    module.setup("fit")
    assert module.sets["labeled"].labels.unique().tolist() == list(range(len(sizes)))
    assert len(module.sets["unlabeled"]) > len(module.sets["labeled"])


@pytest.mark.parametrize(
    ("each", "pool", "message"),
    [
        (1, 0, "give unlabelled examples (--unlabelled DIR), or at least 2 labelled ones a class"),
    ],
)
def test_too_few_images_are_said_in_a_users_words(here, each, pool, message, capsys):
    images(here / "labelled", names=("a1", "b1"), each=each)
    options = ["--images", "labelled"]
    if pool:
        images(here / "pool", names=("x",), each=pool, seed=9)
        options += ["--unlabelled", "pool"]
    assert main(["init", *options]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "data.num" not in said and "\n" not in said


def test_a_cleaned_pool_is_read_back(here, capsys):
    images(here / "labelled", names=("a1", "b1"))
    images(here / "pool", names=("x",), each=12, seed=9)
    (here / "pool" / "notes.txt").write_text("x")
    assert main(["init", "--images", "labelled", "--unlabelled", "pool"]) == 0
    assert "passed over 1 file" in capsys.readouterr().out
    assert main(["fit", "--config", "labelled.yaml", *BUDGET]) == 0
    assert "passed over 1 file" in capsys.readouterr().err
    (run,) = Path("runs/labelled").iterdir()
    (here / "elsewhere").mkdir()
    clean = ["weights", str(run), "--top", "0", "--clean", "elsewhere/kept.csv", "--threshold", "0"]
    assert main(clean) == 0
    assert "validation" not in capsys.readouterr().out  # every label trains
    assert main(["init", "--images", "elsewhere/kept.csv"]) == 0
    module = Images(**recipe("kept.yaml")["data"]["init_args"])
    module.setup("fit")
    assert len(module.sets["labeled"]) + len(module.sets["validation"]) == 20
    assert (module.sets["unlabeled"].labels < 0).sum() == 12


def test_the_range_of_deep_images_is_written(here):
    draw = np.random.default_rng(0)
    for folder, count in (("labelled/a", 8), ("labelled/b", 8), ("pool", 8)):
        Path(folder).mkdir(parents=True)
        for i in range(count):
            pixels = draw.integers(1000, 1200, (12, 12))
            Image.fromarray(pixels.astype(np.uint16)).save(f"{folder}/{i}.png")
    assert main(["init", "--images", "labelled", "--unlabelled", "pool"]) == 0
    data = recipe("labelled.yaml")["data"]["init_args"]
    assert data["levels"] == [1000, 1199]


def test_images_are_mirrored_only_if_told(here):
    images(here / "labelled", names=("cat", "dog"), each=12)
    assert main(["init", "--images", "labelled", "--out", "plain.yaml"]) == 0
    assert main(["init", "--images", "labelled", "--flip", "--out", "flipped.yaml"]) == 0
    assert recipe("plain.yaml")["data"]["init_args"]["flip"] is False
    assert recipe("flipped.yaml")["data"]["init_args"]["flip"] is True


def timm_folder(folder):
    """An encoder of timm's smallest kind, not trained."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit")
    folder.mkdir()
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors"
    )
    shown = {"mean": [0.5] * 3, "std": [0.5] * 3, "classifier": "head", "first_conv": "patch_embed.proj"}
    arguments = {"img_size": 112}
    config = {
        "architecture": "test_vit",
        "num_classes": 1000,
        "pretrained_cfg": shown,
        "model_args": arguments,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_with_an_encoder_every_label_trains_and_the_probe_stands_beside(here, capsys):
    images(here / "labelled", names=("a1", "b1"), each=6)
    images(here / "pool", names=("x",), each=20, seed=9)
    images(here / "held out", names=("a1", "b1"), each=3, seed=3)
    encoder = timm_folder(here / "encoder")
    options = ["--unlabelled", "pool", "--test", "held out", "--encoder", str(encoder)]
    assert main(["init", "--images", "labelled", *options]) == 0
    said = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert "every label trains" in said
    assert "labels only" in said and "which the pool has to beat" in said
    written = recipe("labelled.yaml")
    assert written["model"]["backbone"] == {
        "class_path": "TimmModel",
        "init_args": {"name": str(encoder), "pretrained": True, "frozen": True},
    }
    data = written["data"]["init_args"]
    assert (data["normalise_by"], data["size"], data["num_validation"]) == ("range", 112, 0)
    assert (
        main(["fit", "--config", "labelled.yaml", "--trainer.max_steps", "6", "--trainer.accelerator", "cpu"])
        == 0
    )
    said = capsys.readouterr().out
    for row in ("labels only (12, frozen features)", "with the pool", "handed over"):
        assert row in said
    (run,) = Path("runs/labelled").iterdir()
    metrics = Run(run).metrics
    assert metrics.keys() >= {
        "baseline/error",
        "baseline/test_error",
        "pool/error",
        "pool/share",
        "test/error",
    }
    assert main(["test", str(run)]) == 0
    assert f"{100 * metrics['test/error'][1][-1]:.2f} %" in capsys.readouterr().out
    assert main(["predict", str(run), "--on", "pool"]) == 0


def test_an_encoder_that_is_none_is_refused(here, capsys):
    images(here / "labelled", names=("a1", "b1"))
    (here / "empty").mkdir()
    for given, message in (
        ("empty", "config.json"),
        ("./nowhere", "no such folder"),
        ("resnet17", "did you mean"),
    ):
        assert main(["init", "--images", "labelled", "--encoder", given]) == 2
        said = capsys.readouterr().err.strip()
        assert f"--encoder {given}" in said and message in said and "\n" not in said


def test_steps_fit_into_the_time(here, monkeypatch):
    images(here / "labelled", names=("a1", "b1"))
    for seconds, expected in ((1e-6, timing.MOST["cpu"]), (1e6, timing.FEWEST), (0.156, 800)):
        monkeypatch.setattr(timing, "_seconds", lambda *_, s=seconds: s)
        assert main(["init", "--images", "labelled", "--out", f"r{expected}.yaml"]) == 0
        assert recipe(f"r{expected}.yaml")["trainer"]["max_steps"] == expected


def test_texts_to_predictions(here, tiny_bert, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    write_films(Path("films.csv"), "up: yes", "down")
    assert main(["init", "--text", "films.csv", "--encoder", str(tiny_bert)]) == 0
    assert recipe("films.yaml")["model"]["backbone"]["init_args"]["frozen"] is True
    assert "which the pool has to beat" in re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert main(["fit", "--config", "films.yaml", *BUDGET]) == 0
    assert main(["predict", "runs/films"]) == 0
    (run,) = Path("runs/films").iterdir()
    table = pq.read_table(run / "predictions-unlabeled.parquet").to_pydict()
    assert set(table["class"]) <= {"up: yes", "down"}
    assert "a good film, number 0" in table["id"]


def test_columns_of_other_names(here, tiny_bert, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    rows = "".join(
        f"{i},a {'good' if i % 2 else 'bad'} film {i},x,{i % 2 if i < 16 else ''}\n" for i in range(24)
    )
    Path("films.csv").write_text("id,Review,title,sentiment\n" + rows)
    init = ["init", "--text", "films.csv", "--encoder", str(tiny_bert)]
    assert main([*init, "--out", "usual.yaml"]) == 0
    said = capsys.readouterr().out.replace("│", " ")  # of a table, whose cells may be of several lines
    assert "--text-column for another" in " ".join(said.split())
    assert (
        recipe("usual.yaml")["data"]["init_args"].items()
        >= {"text_column": "Review", "label_column": "sentiment"}.items()
    )
    assert main(["fit", "--config", "usual.yaml", *BUDGET]) == 0
    Path("films.csv").write_text("review,content,sentiment\n" + rows.replace(",x,", ","))
    capsys.readouterr()
    for options, message in (
        (
            [],
            "films.csv: which column holds the texts? It has review, content, sentiment; name it with --text-column",
        ),
        (
            ["--text-column", "words"],
            "--text-column words: --text films.csv has no such column but review, content",
        ),
        (
            ["--text-column", "content", "--test", "test.csv"],
            "--test test.csv: has no column 'content' but text, label",
        ),
    ):
        Path("test.csv").write_text("text,label\na,0\nb,1\n")
        assert main([*init, *options]) == 2
        said = capsys.readouterr().err.strip()
        assert message in said and "\n" not in said
        assert not Path("films.yaml").exists()
    assert main([*init, "--text-column", "content", "--out", "given.yaml"]) == 0
    assert recipe("given.yaml")["data"]["init_args"]["text_column"] == "content"


def test_columns_of_a_table_of_images(here, capsys):
    images(here / "labelled", names=("a1", "b1"))
    table = here / "files.csv"
    named = sorted(path.relative_to(here) for path in (here / "labelled").rglob("*.png"))
    table.write_text("filename;where;species\n" + "".join(f"x;{path};{path.parent.name}\n" for path in named))
    assert main(["init", "--images", "files.csv"]) == 2
    assert (
        "--images files.csv: which column holds the labels? It has filename, where, species"
        in capsys.readouterr().err
    )
    assert main(["init", "--images", "files.csv", "--path-column", "where", "--label-column", "species"]) == 0
    arguments = recipe("files.yaml")["data"]["init_args"]
    assert arguments["path_column"] == "where" and arguments["label_column"] == "species"
    assert main(["fit", "--config", "files.yaml", *BUDGET]) == 0


ODD = ["del\x7f and \u2028", "quote \" ' \\ [v2] #1: {x}", "- 2024", "📷 日本"]


@pytest.mark.parametrize("name", ODD)
def test_folders_of_any_name_come_back_from_the_recipe(here, name):
    """What YAML cannot hold is escaped: the recipe runs, and its run can be read."""
    images(here / name / "labelled", each=4)
    images(here / name / "pool", names=("x",), each=3, seed=1)
    assert (
        main(["init", "--images", f"{name}/labelled", "--unlabelled", f"{name}/pool", "--out", "r.yaml"]) == 0
    )
    assert main(["fit", "--config", "r.yaml", *BUDGET]) == 0
    (run,) = Path("runs/r").iterdir()
    assert Run(run).config["data"]["init_args"]["labeled"] == str(here / name / "labelled")
    assert main(["weights", str(run), "--top", "1"]) == 0


def test_remarks_on_a_table_are_made_once_and_whole(here, tiny_bert, capsys):
    """Its file is read for its columns, its labels and its rows; long paths are not cut."""
    folder = here / ("deep " * 20).strip() / "more"
    folder.mkdir(parents=True)
    rows = [f"text number {i};{'NA' if i % 2 else 'EU'}" for i in range(12)] + ["one;", "two;"]
    (folder / "t.csv").write_text("\n".join(["text;label", *rows]) + "\n")
    assert (
        main(["init", "--text", str(folder / "t.csv"), "--encoder", str(tiny_bert), "--out", "r.yaml"]) == 0
    )
    printed = capsys.readouterr()
    remarks = [line for line in printed.out.splitlines() if line.startswith("look at: ")]
    assert len(remarks) == 2
    assert all(f"{folder}/t.csv" in line for line in remarks)
    assert "separated by semicolons" in remarks[0]
    assert "have the label 'NA'" in remarks[1]
    assert "warning: " not in printed.err


def test_remarks_are_made_before_an_error(here, tiny_bert, capsys):
    (here / "t.csv").write_text("text;label\na;x\nb;x\n")
    assert main(["init", "--text", "t.csv", "--encoder", str(tiny_bert)]) == 2
    said = capsys.readouterr().err
    assert said.count("separated by semicolons") == 1
    assert "error: --text t.csv: " in said
    for content in ("", "text,label\n", "text,label\n,x\n,y\n"):
        (here / "t.csv").write_text(content)
        assert main(["init", "--text", "t.csv", "--encoder", str(tiny_bert)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: --text t.csv: ") and "data." not in said


def test_nothing_is_written_over(here, capsys):
    images(here / "labelled", names=("a1", "b1"))
    for name in ("mine.yaml", "mine.split.json"):
        Path(name).write_text("precious")
        assert main(["init", "--images", "labelled", "--out", "mine.yaml"]) == 2
        assert f"{name} is there already" in capsys.readouterr().err
        assert Path(name).read_text() == "precious"
        Path(name).unlink()
    assert not list(here.glob("mine*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "nowhere"], "error: --images nowhere: no such folder"),
        (["--images", "empty"], "error: --images empty: holds no folders with images"),
        (["--images", "labelled", "--unlabelled", "nowhere"], "error: --unlabelled nowhere: no such folder"),
        (
            ["--text", "labelled"],
            "error: --text labelled: a folder, and texts are a table; of images, type --images ",
        ),
        (
            ["--images", "rows.csv"],
            "error: --images rows.csv: has texts (text) and no column of paths; texts are ",
        ),
        (["labelled"], "error: labelled: belongs to no option; did you mean init --images labelled?"),
        (["rows.csv"], "error: rows.csv: belongs to no option; did you mean init --text rows.csv?"),
        (["--images", "labelled", "--out", "x.txt"], "--out x.txt: must end in .yaml"),
        (["--images", "labelled", "--out", "no/x.yaml"], "there is no folder"),
        (["--text", "nowhere.csv"], "--text nowhere.csv: no such file"),
        (
            ["--images", "labelled", "--path-column", "x"],
            "--path-column x: names a column of a table, and no table",
        ),
    ],
)
def test_bad_input(here, options, message, capsys):
    images(here / "labelled", names=("a1", "b1"))
    (here / "empty").mkdir()
    (here / "rows.csv").write_text("text,label\n")
    assert main(["init", *options]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not list(here.glob("*.yaml")) + list(here.glob("*.json"))


def test_folders_that_are_hardly_classes(here, capsys):
    images(here / "pics", names=("a1", "b1", "test"))
    assert main(["init", "--images", "pics"]) == 0
    said = capsys.readouterr().out
    assert (
        "look at: --images pics: its folder 'test' is read as a class; if it is none, type --test pics/test"
        in said
    )
    images(here / "pics", names=("Un-labelled",))
    assert main(["init", "--images", "pics", "--out", "two.yaml"]) == 2
    said = capsys.readouterr().err
    assert (
        "its folder 'Un-labelled' would be a class; if it is the pool, type --unlabelled pics/Un-labelled"
        in said
    )
    assert main(["init", "--images", "pics", "--unlabelled", "pics/Un-labelled", "--out", "two.yaml"]) == 0


def test_an_encoder_that_cannot_be_had_is_refused_at_once(here, monkeypatch, capsys):
    import huggingface_hub as hub

    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(hub.HfApi, "model_info", unreachable)
    Path("films.csv").write_text("text,label\n" + "\n".join(f"film {i},{i % 2}" for i in range(20)) + "\n")
    assert main(["init", "--text", "films.csv"]) == 2
    said = capsys.readouterr().err.strip()
    assert "give --encoder a folder that holds config.json" in said
    assert "\n" not in said
    assert main(["init", "--text", "films.csv", "--encoder", "/no/such"]) == 2
    assert "--encoder /no/such: no such folder" in capsys.readouterr().err
