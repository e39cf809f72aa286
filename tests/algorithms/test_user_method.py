"""A method in the user's own file, named on the command line, trains; nothing of the package is touched."""

import csv
import os
import subprocess
import sys

METHOD = '''
from ssl_weighting.algorithms import Algorithm
from ssl_weighting.algorithms.base import one_hot_like, supervised_term, unlabeled_term
from ssl_weighting.terms import CROSS_ENTROPY


class TwoViews(Algorithm):
    """One weak view of an example is compared to the label of another.

    Args:
        coefficient: Weight of the unlabelled loss.
    """

    views = {"first": ("weak",), "second": ("weak",)}

    def __init__(self, coefficient: float = 1.0) -> None:
        super().__init__()
        self.coefficient = coefficient

    def loss_terms(self, model, labeled, unlabeled, context):
        known, first, second = model.joint(labeled.inputs, *unlabeled.views.values())
        q = first.probabilities()
        target = one_hot_like(q.argmax(-1), q)
        return [
            supervised_term(known, labeled.target),
            unlabeled_term("mine", second, target, CROSS_ENTROPY, unlabeled.row, scale=self.coefficient),
        ]
'''


def test_a_method_of_ones_own(tmp_path):
    (tmp_path / "my_module.py").write_text(METHOD)
    arguments = {
        "data": "Digits",
        "data.labeled_batch_size": 8,
        "data.unlabeled_batch_size": 16,
        "model.backbone": "SmallConvNet",
        "model.backbone.in_channels": 1,
        "model.algorithm": "my_module.TwoViews",
        "model.algorithm.coefficient": 0.5,
        "model.weighting.inner_steps": 2,
        "trainer.max_steps": 5,
        "trainer.log_every_n_steps": 1,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "runs": tmp_path / "runs",
    }
    command = [
        sys.executable,
        "-m",
        "ssl_weighting",
        "fit",
        *(f"--{key}={value}" for key, value in arguments.items()),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    (metrics,) = tmp_path.glob("runs/*/*/metrics.csv")
    with open(metrics) as file:
        rows = list(csv.DictReader(file))
    assert any(row.get("train/mine") for row in rows)
    assert any(row.get("weights/batch_std") and float(row["weights/batch_std"]) > 0 for row in rows)
