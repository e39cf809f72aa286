"""Areas under ROC curves against a count of pairs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssl_weighting.app.callbacks.pool_quality import pool_quality
from ssl_weighting.app.runs import Run

LABELS = torch.tensor([0, 1, 0, 1, 2, 2, 0, -1, 1, 0])  # two known classes, a foreign one, one unknown
GUESSES = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1, -1, 0], dtype=torch.int32)  # the ninth was never seen
WEIGHTS = torch.tensor([1.5, 2.0, 0.5, 1.5, 0.0, 1.0, 3.0, 9.0, 9.0, 1.0])
CONFIDENCES = torch.tensor([0.9, 0.7, 0.8, 0.6, 0.9, 0.5, 0.7, 0.1, float("nan"), 0.95])


def module(weights=WEIGHTS, moved=True, guesses=GUESSES):
    happened = SimpleNamespace(
        pseudo_label=guesses, confidence=CONFIDENCES, updates=torch.full((len(LABELS),), int(moved))
    )
    weighting = SimpleNamespace(
        sampled=lambda: torch.arange(len(LABELS)), known=lambda rows: (weights, happened)
    )
    return SimpleNamespace(
        weighting=weighting, num_classes=2, data=SimpleNamespace(judged_labels=lambda rows: LABELS[rows])
    )


def area(score, good, bad):
    pairs = [1.0 if score[g] > score[b] else 0.5 if score[g] == score[b] else 0.0 for g in good for b in bad]
    return pytest.approx(sum(pairs) / len(pairs))


def test_areas_and_error():
    right, wrong, foreign = [0, 1, 6, 9], [2, 3], [4, 5]
    assert pool_quality(module()) == {
        "pool/pseudo_label_error": pytest.approx(2 / 6),
        "pool/right_auroc_weight": area(WEIGHTS, right, wrong),
        "pool/right_auroc_confidence": area(CONFIDENCES, right, wrong),
        "pool/own_auroc_weight": area(WEIGHTS, right + wrong, foreign),
        "pool/own_auroc_confidence": area(CONFIDENCES, right + wrong, foreign),
    }


def test_what_does_not_exist_is_left_out():
    assert "pool/own_auroc_weight" not in pool_quality(module(moved=False))
    shared = pool_quality(module(torch.full((len(LABELS),), 1.3)))
    assert shared["pool/own_auroc_weight"] == 0.5  # one weight for all tells nothing apart
    assert pool_quality(module(guesses=torch.full_like(GUESSES, -1))) == {}


def test_labels_that_training_saw_judge_nothing(tiny_run):
    run = Run(tiny_run)
    columns = {name: run.weights[name].to_numpy() for name in ("index", "label", "pseudo_label")}
    given = np.isin(columns["index"], run.split.labeled.numpy())
    seen = np.isfinite(columns["pseudo_label"]) & (columns["pseudo_label"] >= 0)
    assert (given & seen).any(), "the pool holds labelled examples"
    wrong = columns["pseudo_label"] != columns["label"]
    assert run.metrics["pool/pseudo_label_error"][1][-1] == pytest.approx(wrong[seen & ~given].mean())
