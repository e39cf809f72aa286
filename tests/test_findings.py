"""Near duplicates and doubtful labels of a run: ranked, kept, shown and said."""

import csv
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from ssl_weighting.app.cli import main
from ssl_weighting.app.findings import doubts, keep_findings, told
from ssl_weighting.app.report.page import render, write_page
from ssl_weighting.app.runs import Run
from ssl_weighting.data.near_duplicates import Pairs
from ssl_weighting.data.tensors import TensorData
from ssl_weighting.errors import UserError


def test_the_least_probable_label_comes_first():
    held_out = np.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.3, 0.3, 0.4], [0.2, 0.1, 0.7]])
    found = doubts(held_out, np.array([0, 2, 2, 0]))
    assert found.rows.tolist() == [1, 3, 2, 0]
    assert found.given.tolist() == [0.05, 0.2, 0.4, 0.7]
    assert found.likelier.tolist() == [1, 2, 0, 1]
    assert found.other.tolist() == [0.9, 0.7, 0.3, 0.2]


def test_one_line_of_near_duplicates():
    assert told([]) == "none found"
    assert told([Pairs.of("unlabeled", "unlabeled", [(0, 1, 1.0), (1, 0, 1.0)])]) == "2 inside the pool"
    assert told([Pairs.of("test", "unlabeled", [(0, 1, 1.0)])]) == (
        "1 test example in the pool: the test error flatters, see --data.drop_test_leaks"
    )


def test_what_cannot_be_compared_leaves_no_file(tmp_path):
    data = TensorData(torch.randn(20, 2), [0, 1] * 5 + [-1] * 10, num_validation=0)
    data.setup("fit")
    lines = keep_findings(tmp_path, data, None)
    assert lines == [("near duplicates", "not looked for in inputs of 2 numbers, fewer than 32")]
    assert not [*tmp_path.iterdir()]


# ---- from a folder of pictures to the page ----

BUDGET = {
    "trainer.max_steps": 2,
    "trainer.val_check_interval": 2,
    "trainer.accelerator": "cpu",
    "data.unlabeled_batch_size": 8,
    "data.labeled_batch_size": 4,
}


def picture(path, seed, brightness=1.0):
    """A picture without detail that is like no other of another seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(40, 200, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((24, 24), Image.Resampling.BICUBIC)
    ImageEnhance.Brightness(image).enhance(brightness).save(path)


@pytest.fixture
def leaky(tmp_path, monkeypatch):
    """Two of four test images are nearly those of the pool; one of the pool is nearly labelled."""
    for c, name in enumerate("ab"):
        for i in range(6):
            picture(tmp_path / "labelled" / name / f"{i}.png", 10 * c + i)
        picture(tmp_path / "test" / name / "new.png", 200 + c)
        picture(tmp_path / "test" / name / "leak.png", 100 + c, 0.97)
    for i in range(8):
        picture(tmp_path / "pool" / f"{i}.png", 100 + i)
    picture(tmp_path / "pool" / "again.png", 0, 0.97)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ssl_weighting.app.init.encoders.IMAGE_ENCODERS", ())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


INIT = ["init", "--images", "labelled", "--unlabelled", "pool", "--test", "test"]


def test_init_says_it_and_drops_what_it_is_told_to(leaky, capsys):
    assert main([*INIT, "--out", "leaky.yaml"]) == 0
    said = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert "near duplicates 3 2 test examples in the pool; 1 of the pool among the labelled examples" in said
    assert "look at: data: 2 of 4 test examples are in the pool as well, or nearly so (first: " in said
    assert "the test error will be too kind; --drop-test-leaks leaves them out of the pool" in said
    assert main([*INIT, "--drop-test-leaks", "--out", "clean.yaml"]) == 0
    said = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert "look at: --drop-test-leaks: 2 of 21 examples are left out of the pool" in said
    assert "near duplicates 1 1 of the pool among the labelled examples" in said
    assert "drop_test_leaks: true" in (leaky / "clean.yaml").read_text()
    assert '"dropped": [12, 13]' in (leaky / "clean.split.json").read_text()


def test_init_has_nothing_to_drop_without_test_images(leaky, capsys):
    with pytest.raises(SystemExit):
        main([*INIT[:5], "--drop-test-leaks"])
    assert "--drop-test-leaks needs --test PATH" in capsys.readouterr().err


def test_a_run_keeps_shows_and_says_them(leaky, capsys):
    assert main([*INIT, "--out", "leaky.yaml"]) == 0
    capsys.readouterr()
    flags = [part for key, value in BUDGET.items() for part in (f"--{key}", str(value))]
    assert main(["fit", "--config", "leaky.yaml", *flags]) == 0
    said = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert (
        "2 test examples in the pool; 1 of the pool among the labelled examples: the test error flatters"
        in said
    )
    (folder,) = (leaky / "runs" / "leaky").iterdir()
    with open(folder / "near_duplicates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["part"], row["id"], row["near_part"], row["near_id"]) for row in rows} == {
        ("test", "a/leak.png", "unlabeled", "pool/0.png"),
        ("test", "b/leak.png", "unlabeled", "pool/1.png"),
        ("unlabeled", "pool/again.png", "labeled", "labelled/a/0.png"),
    }
    run = Run(folder)
    assert [(some.part, some.near, len(some.rows)) for some in run.near_duplicates] == [
        ("unlabeled", "labeled", 1),
        ("test", "unlabeled", 2),
    ]
    for page in ((folder / "report.html").read_text(), render(Run(folder), Run(folder).data())):
        section = page[page.index('id="duplicates"') :]
        assert section.count('<div class="pair">') == 3
        assert section.count("<img src=") == 6
        assert "drop_test_leaks true" in section
        assert "again.png" in section
    assert len(run.doubtful_labels) == 12
    assert {row["label"] for row in run.doubtful_labels} == {"a", "b"}
    probabilities = [float(row["probability"]) for row in run.doubtful_labels]
    assert probabilities == sorted(probabilities)
    assert ("Doubtful labels" in page) == (min(probabilities) < 0.5)
    by_number = render(Run(folder), None, missing="gone")
    assert by_number.count('<div class="pair">') == 3
    (folder / "near_duplicates.csv").unlink()
    (folder / "doubtful_labels.csv").unlink()
    older = write_page(Run(folder)).read_text()  # a run of a version that kept neither
    assert 'id="duplicates"' not in older
    assert 'id="labels"' not in older


@pytest.mark.parametrize(
    "content", ["part,index\n", "part,near_part,index,near_index,similarity\nx,y,1,2,3\n"]
)
def test_a_damaged_table_is_named(tiny_run, tmp_path, content):
    for name in ("config.yaml",):
        (tmp_path / name).write_bytes((tiny_run / name).read_bytes())
    (tmp_path / "near_duplicates.csv").write_text(content)
    with pytest.raises(UserError, match=r"near_duplicates\.csv: damaged"):
        _ = Run(tmp_path).near_duplicates
