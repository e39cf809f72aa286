"""What of new examples belongs to no class, told by a finished run."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from command import words
from sklearn.metrics import roc_auc_score

import ssl_weighting
from ssl_weighting.app.belonging import Belonging
from ssl_weighting.app.cli import main
from ssl_weighting.app.predictions import predictions_table
from ssl_weighting.app.runs import Run
from ssl_weighting.data.digits import Digits
from ssl_weighting.data.remembered import NewExamples
from ssl_weighting.errors import UserError

KNOWN = [5, 6, 7, 8, 9]
OPTIONS = words(
    {
        "data": "Digits",
        "data.num_labeled": 30,
        "data.num_validation": 0,
        "data.known_classes": KNOWN,
        "data.pool_classes": [0, 1, 2, 3, 4],
        "model.backbone": "Precomputed",
        "model.backbone.feature_dim": 64,
        "model.algorithm": "Ensemble",
        "model.weighting.kind": "fixed",
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
    }
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", *OPTIONS]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    (found,) = Path("runs/custom").iterdir()
    return found


def digits():
    """All ten digits of the test images, of which half are of no known class; their pixels and classes."""
    data = Digits(num_labeled=30, num_validation=0, split_seed=0)
    data.setup()
    test = data.sets["test"]
    return test.raw(), test.labels.numpy()


def pixels(data, part):
    return data.normalise(data.prepare(data.sets[part].raw())).flatten(1).numpy()


def test_new_examples_get_what_the_pool_teaches(run):
    raw, classes = digits()
    model = ssl_weighting.load(run, device="cpu")
    own = model.own_probability(raw)
    assert own.dtype == np.float32 and own.shape == (len(raw),)
    assert roc_auc_score(np.isin(classes, KNOWN), own) > 0.85
    data = Run(run).data()
    features = [pixels(data, part) for part in ("labeled", "unlabeled")]
    given = np.concatenate([data.sets["labeled"].labels.numpy(), np.full(len(features[1]), -1)])
    fitted = Belonging(np.concatenate(features), given)
    np.testing.assert_allclose(own, fitted(data.normalise(data.prepare(raw)).flatten(1).numpy()), atol=1e-5)
    plain, rejecting = model.predict(raw), model.predict(raw, reject=0.4)
    assert rejecting == [name if p >= 0.4 else None for name, p in zip(plain, own, strict=True)]
    assert 0 < rejecting.count(None) < len(raw)
    assert model.own_probability([]).shape == (0,) and model.predict([], reject=0.4) == []


def test_predict_writes_the_column_and_rejects(run, capsys):
    assert main(["predict", str(run), "--out", "plain.csv"]) == 0
    assert "rejected" not in capsys.readouterr().out
    assert main(["predict", str(run), "--out", "test.parquet", "--reject", "0.4"]) == 0
    table = pq.read_table("test.parquet").to_pandas()
    low = table["own_probability"] < 0.4
    assert 0 < low.sum() < len(low)
    assert f"{low.sum()} rejected: their own_probability is below 0.4" in capsys.readouterr().out
    np.testing.assert_array_equal(table["class"].isna(), low)
    assert table["probability"].notna().all()
    assert Path("plain.csv").read_text().splitlines()[0].split(",")[:5] == [
        '"index"',
        '"id"',
        '"class"',
        '"probability"',
        '"own_probability"',
    ]


def test_of_the_pool_it_is_what_training_ended_with(run):
    assert main(["predict", str(run), "--on", "unlabeled", "--out", "pool.parquet"]) == 0
    found, weights = pq.read_table("pool.parquet"), Run(run).weights
    assert found["index"].equals(weights["index"])
    assert found["own_probability"].equals(weights["own_probability"])


def test_an_example_that_cannot_be_read_is_neither_own_nor_rejected(run, monkeypatch):
    raw, _ = digits()
    model = ssl_weighting.load(run, device="cpu")
    whole = model.own_probability(raw[:3])
    new = NewExamples(["a", "b", "c", "d"], torch.tensor([0, 1, 3]), model.data.source_of(raw[:3]))
    monkeypatch.setattr(model, "read", lambda examples: new)
    own = model.own_probability("some")
    np.testing.assert_array_equal(own[[0, 1, 3]], whole)
    assert np.isnan(own[2]) and model.predict("some", reject=1e-9)[2] is None
    table = predictions_table(
        torch.arange(3),
        ["a", "b", "c"],
        torch.tensor([0, 2]),
        torch.eye(2),
        ["x", "y"],
        whole[:2] * 0 + 0.5,
        0.6,
    )
    assert table["own_probability"].to_pylist() == [0.5, None, 0.5] and table["class"].null_count == 3
    assert table["probability"].to_pylist() == [1, None, 1]


@pytest.mark.parametrize("given", ["0", "1.5", "-1", "nan", "half"])
def test_a_share_that_is_none_is_refused_before_anything_is_looked_at(run, capsys, given):
    assert main(["predict", str(run), "--reject", given]) == 2
    said = capsys.readouterr().err
    assert f"--reject {given}: " in said.replace(".0:", ":") and "give --reject 0.5" in said


def test_a_run_without_is_refused_and_predicts_all_the_same(run, capsys):
    (run / "belonging.safetensors").unlink()
    assert main(["predict", str(run), "--reject", "0.5"]) == 2
    said = capsys.readouterr().err
    assert (
        "--reject 0.5: the run's folder has no belonging.safetensors" in said and "leave --reject out" in said
    )
    model = ssl_weighting.load(run, device="cpu")
    with pytest.raises(UserError, match=r"^own_probability: the run's folder has no"):
        model.own_probability(digits()[0])
    with pytest.raises(UserError, match=r"^reject=0.5: the run's folder has no"):
        model.predict(digits()[0], reject=0.5)
    assert main(["predict", str(run), "--out", "test.parquet"]) == 0
    assert "own_probability" not in pq.read_table("test.parquet").column_names


def test_a_damaged_file_is_made_again_as_the_message_says(run, capsys):
    path = run / "belonging.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    assert main(["predict", str(run)]) == 2
    assert f"ssl-weighting resume {run.resolve()} writes it again" in capsys.readouterr().err
    assert main(["resume", str(run)]) == 0
    assert path.read_bytes() == whole


def test_a_file_of_other_features_is_refused(run):
    features, rows = np.random.default_rng(0).normal(size=(60, 7)), np.arange(60)
    Belonging(features, np.where(rows < 20, rows % 3, -1)).save(run / "belonging.safetensors")
    with pytest.raises(UserError, match="is of 7 features, and the model has 64"):
        ssl_weighting.load(run, device="cpu").own_probability(digits()[0])
