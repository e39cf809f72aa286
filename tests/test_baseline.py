"""The labels-only probe beside a run, and what is handed over."""

from pathlib import Path

import numpy as np
import pytest
import torch
from command import words

import ssl_weighting
from ssl_weighting.app import baseline
from ssl_weighting.app.cli import main
from ssl_weighting.app.mixture import Mixture
from ssl_weighting.app.runs import Run
from ssl_weighting.data.digits import Digits

ENSEMBLE = words(
    {
        "data": "Digits",
        "data.num_labeled": 30,
        "data.num_validation": 0,
        "model.backbone": "Precomputed",
        "model.backbone.feature_dim": 64,
        "model.algorithm": "Ensemble",
        "model.influence": "ExactLastLayer",
        "model.weighting.inner_steps": 3,
        "trainer.max_steps": 6,
        "trainer.accelerator": "cpu",
    }
)
PLAIN = words(
    {
        "data": "Digits",
        "data.num_labeled": 20,
        "data.num_validation": 20,
        "model.backbone": "MLP",
        "model.backbone.in_features": 64,
        "model.algorithm": "UDA",
        "model.algorithm.strong": "[weak]",
        "model.weighting.inner_steps": 2,
        "model.weighting.update_masked": "true",
        "trainer.max_steps": 6,
        "trainer.accelerator": "cpu",
    }
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_of(name="custom"):
    return max((path for path in (Path("runs") / name).iterdir()), key=lambda path: path.stat().st_mtime_ns)


def test_the_probe_stands_beside_a_run(here, capsys):
    assert main(["fit", *PLAIN]) == 0
    assert "labels only (40, pixels)" in capsys.readouterr().out
    metrics = Run(run_of()).metrics
    data = Digits(num_labeled=20, num_validation=20, split_seed=0)
    data.setup()
    parts = {}
    for part in ("labeled", "validation", "test"):
        raw = data.sets[part].raw()
        parts[part] = (
            data.normalise(data.prepare(raw)).flatten(1).double().numpy(),
            data.sets[part].labels.numpy(),
        )
    x, y = (np.concatenate([parts["labeled"][i], parts["validation"][i]]) for i in (0, 1))
    first = parts["labeled"][0]
    mean, deviation = first.mean(0), np.where(first.std(0) < 1e-6, 1, first.std(0))
    probe = baseline.fit_probe((x - mean) / deviation, y)
    assert metrics["baseline/error"][1][-1] == pytest.approx(probe.error)
    tested = probe.probabilities((parts["test"][0] - mean) / deviation).argmax(1)
    assert metrics["baseline/test_error"][1][-1] == pytest.approx((tested != parts["test"][1]).mean())


def test_no_probe_where_none_is_wanted_or_there_are_too_many_labels(here, capsys, monkeypatch):
    assert main(["fit", *PLAIN, "--baseline", "none"]) == 0
    monkeypatch.setattr(baseline, "MOST", 39)
    assert "labels only" not in capsys.readouterr().out
    assert main(["fit", *PLAIN]) == 0
    said = capsys.readouterr()
    assert "labels only" not in said.out and "no probe of 40 labels, more than 39" in said.err
    monkeypatch.setattr(baseline, "MOST", 29)
    assert main(["fit", *ENSEMBLE, "--baseline", "choose"]) == 2
    assert "is for at most 29 labels" in capsys.readouterr().err


@pytest.mark.parametrize("classes", [None, [3, 5]])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_what_the_labels_chose_is_what_predicts(here, capsys, monkeypatch, share, classes):
    chosen = Mixture(share, (1.5, 0.5))
    monkeypatch.setattr(Mixture, "of", classmethod(lambda cls, *_: chosen))
    known = ["--data.known_classes", str(classes)] if classes else []
    assert main(["fit", *ENSEMBLE, *known, "--baseline", "choose"]) == 0
    said = capsys.readouterr().out
    assert {0.0: "the pool did not help", 0.4: "40% the model", 1.0: "the model with the pool"}[share] in said
    run = run_of()
    model = ssl_weighting.load(run, device="cpu")
    data = Digits(num_labeled=30, num_validation=0, split_seed=0, known_classes=classes)
    data.setup()
    test = data.sets["test"].raw()
    found = model.probabilities(test)
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    kept = content["ssl_weighting"].pop("handed_over")
    torch.save(content, run / "checkpoints" / "pool.ckpt")
    pool = ssl_weighting.load(run / "checkpoints" / "pool.ckpt", device="cpu").probabilities(test)

    def inputs(part):
        return data.normalise(data.prepare(data.sets[part].raw())).flatten(1).double().numpy()

    first = inputs("labeled")
    mean, deviation = first.mean(0), np.where(first.std(0) < 1e-6, 1, first.std(0))
    probe = baseline.fit_probe((first - mean) / deviation, data.sets["labeled"].labels.numpy())
    alone = probe.probabilities((inputs("test") - mean) / deviation)
    expected = alone if share == 0 else chosen(alone, pool.astype(np.float64))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert kept["share"] == share
    error = (found.argmax(1) != data.sets["test"].labels.numpy()).mean()
    assert Run(run).metrics["test/error"][1][-1] == pytest.approx(error)


def test_a_run_that_goes_on_trains_what_it_trained(here, capsys, monkeypatch):
    """The probe that was handed over has no part in the average that later steps follow."""
    monkeypatch.setattr(Mixture, "of", classmethod(lambda cls, *_: Mixture(0.0, (1.0, 1.0))))
    weights = {}
    for kind in ("none", "choose"):
        assert main(["fit", *ENSEMBLE, "--baseline", kind, "--runs", kind]) == 0
        (run,) = (here / kind / "custom").iterdir()
        assert main(["resume", str(run), "--trainer.max_steps", "9"]) == 0
        content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert ("handed_over" in content["ssl_weighting"]) == (kind == "choose")
        weights[kind] = {
            k: v for k, v in content["state_dict"].items() if k.startswith(("ema.", "model.", "weighting."))
        }
    assert weights["none"].keys() == weights["choose"].keys()
    tensors = [name for name, value in weights["none"].items() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 4
    for name in tensors:  # bit by bit, and not a number where nothing was seen
        torch.testing.assert_close(
            weights["none"][name], weights["choose"][name], rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*PLAIN, "--data.num_validation", "0"], "--model.backbone.frozen true"),
        ([*ENSEMBLE, "--data.num_validation", "10"], "--data.num_validation 0"),
        ([*ENSEMBLE, "--model.weighting.storage", "disk"], "--model.weighting.storage memory"),
    ],
)
def test_choosing_is_refused_in_a_line_where_it_cannot_be(here, capsys, options, message):
    assert main(["fit", *options, "--baseline", "choose"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: baseline=choose") and message in said


def test_options_of_features_are_said_to_have_no_effect_where_the_backbone_is_trained(here, capsys):
    assert main(["fit", *PLAIN, "--model.features.views", "3"]) == 0
    assert "model.features: has no effect" in capsys.readouterr().err


def test_refit_trains_on_all_labels_with_the_weights_as_they_are(here, capsys):
    assert main(["fit", *PLAIN]) == 0
    first = run_of()
    assert main(["refit", str(first), "--trainer.max_steps", "4"]) == 0
    second = run_of()
    assert second != first
    before, after = Run(first), Run(second)
    together = torch.cat((before.split.labeled, before.split.validation)).sort().values
    assert after.split.labeled.equal(together) and not len(after.split.validation)
    assert after.split.unlabeled.equal(before.split.unlabeled)
    assert before.weights["weight"].to_numpy().std() > 0
    np.testing.assert_array_equal(after.weights["weight"].to_numpy(), before.weights["weight"].to_numpy())
    assert main(["refit", str(second)]) == 2
    assert "all of them have trained" in capsys.readouterr().err


def test_weights_of_another_split_are_refused(here, capsys):
    assert main(["fit", *PLAIN]) == 0
    table = run_of() / "weights.parquet"
    options = ["--model.weighting.weights", str(table), "--data.split_seed", "5"]
    assert main(["fit", *PLAIN, *options]) == 2
    assert "has no weight for" in capsys.readouterr().err
    (here / "no.parquet").write_text("x")
    assert main(["fit", *PLAIN, "--model.weighting.weights", "no.parquet"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_run_on_features_says_what_belongs_and_cleans_by_it(here, capsys):
    known = ["--data.known_classes", "[5, 6, 7, 8, 9]", "--data.pool_classes", "[0, 1, 2, 3, 4]"]
    assert main(["fit", *ENSEMBLE, *known]) == 0
    said = capsys.readouterr().out
    found = run_of()
    table = Run(found).weights
    own = table["own_probability"].to_numpy()
    assert len(own) == len(table) and ((own >= 0) & (own <= 1)).all()
    really = table["label"].to_numpy() < 5
    assert own[really].mean() > own[~really].mean() + 0.2
    assert Run(found).metrics["pool/own_share"][1][-1] == pytest.approx(own.mean(), rel=1e-4)
    assert f"about {1 - own.mean():.0%} of the pool" in said
    page = (found / "report.html").read_text(encoding="utf-8")
    shown = page[page.index("Most foreign") : page.index("Most harmful")]
    assert f"about {1 - own.mean():.0%} of the pool are not" in shown
    assert shown.count("<dt>own</dt>") == min(len(own), 16) == shown.count("<dt>really</dt>")
    assert main(["weights", str(found), "--clean", "kept.csv"]) == 0
    labeled = np.isin(table["index"].to_numpy(), Run(found).data().split.labeled.numpy())
    assert labeled.sum() == 30
    kept = (own >= 0.5) | labeled
    assert f"{kept.sum()} of {len(own)}" in capsys.readouterr().out
    assert len(Path("kept.csv").read_text().splitlines()) == kept.sum() + 1
    assert main(["weights", str(found), "--clean", "few.csv", "--least-probability", "0.9"]) == 0
    said, kept = capsys.readouterr().out, (own >= 0.9) | labeled
    assert f"{kept.sum()} of {len(own)}" in said and f"about {(1 - own[kept]).sum():.0f} of them" in said
    assert main(["weights", str(found), "--clean", "by_weight.csv", "--threshold", "0.2"]) == 0
    assert "of weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--least-probability", "0.9"], "says what --clean keeps; give --clean FILE too"),
        (["--clean", "a.csv", "--threshold", "1", "--least-probability", "0.9"], "give one of them"),
        (["--clean", "a.csv", "--least-probability", "0.9"], "the run has no own_probability"),
    ],
)
def test_a_cleaning_that_cannot_be_is_refused(here, capsys, options, message):
    assert main(["fit", *PLAIN, "--baseline", "none"]) == 0
    assert main(["weights", str(run_of()), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_pool_too_large_or_labels_too_few_to_compare_are_said(here, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(baseline, "COMPARED", 100)
        assert main(["fit", *ENSEMBLE]) == 0
    assert "own_probability: not computed" in capsys.readouterr().err
    assert "own_probability" not in Run(run_of()).weights.column_names
    assert main(["fit", *ENSEMBLE, "--data.num_labeled", "10"]) == 0
    assert "fewer than 4 labels could be held out" in capsys.readouterr().err
    assert "own_probability" not in Run(run_of()).weights.column_names
