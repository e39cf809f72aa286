"""Histograms of Λ over training: the same in the file and in TensorBoard, and no step twice after a resume."""

import csv

import pytest
from command import words

from ssl_weighting.app.cli import main
from ssl_weighting.app.runs import Run

SHORT = {
    "config": "digits_uda",
    "trainer.accelerator": "cpu",
    "model.weighting.inner_steps": 1,
    "model.weighting.warmup_steps": 0,
    "model.weighting.update_masked": "true",
    "data.unlabeled_batch_size": 16,
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of 6 steps with TensorBoard, resumed after 4 by a longer budget."""
    folder = tmp_path_factory.mktemp("histogram")
    options = SHORT | {"runs": folder, "trainer.logger": "TensorBoard", "trainer.val_check_interval": 2}
    arguments = ["fit", *words(options), "--model.theta.schedule", "constant"]
    assert main([*arguments, "--trainer.max_steps", "4"]) == 0
    (run,) = (folder / "digits_uda").iterdir()
    with open(run / "weights_history.csv", "a") as file:  # as if it had been killed later on
        file.write("5,0.5,1.5," + ",".join(["1"] * 64) + "\n")
    assert main([*arguments, "--trainer.max_steps", "6", "--ckpt_path", "last"]) == 0
    return run


def test_rows_beyond_the_checkpoint_are_dropped(run_folder):
    with open(run_folder / "weights_history.csv", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps)
    assert set(steps) == {0, 2, 4, 6}


def test_tensorboard_has_the_same(run_folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(run_folder / "tensorboard"), size_guidance={"histograms": 0, "tensors": 0})
    events.Reload()
    kept = Run(run_folder).weight_history
    shown = {}
    if "weights/histogram" in events.Tags()["histograms"]:
        for event in events.Histograms("weights/histogram"):
            shown[event.step] = [n for n in event.histogram_value.bucket if n]
    else:
        for event in events.Tensors("weights/histogram"):
            shown[event.step] = [n for n in make_ndarray(event.tensor_proto)[:, 2] if n]
    assert sorted(shown) == kept.steps.tolist()
    for i, step in enumerate(kept.steps.tolist()):
        assert shown[step] == [n for n in kept.counts[i].tolist() if n]


def test_timing_goes_on_after_a_resume(run_folder):
    timing = Run(run_folder).timing
    assert timing["steps"] == 6
    assert timing["seconds"] > timing["evaluation_seconds"] > 0


def test_weights_that_differ_by_a_rounding_error(tmp_path):
    """A float32 is too coarse for 64 bins between two neighbours."""
    options = SHORT | {"runs": tmp_path, "trainer.max_steps": 2, "trainer.val_check_interval": 1}
    assert main(["fit", *words(options), "--model.weighting.lr", "1e-7"]) == 0
    (run,) = (tmp_path / "digits_uda").iterdir()
    assert (run / "report.html").is_file()
    assert Run(run).weight_history.counts.sum(1).min() == len(Run(run).weights)
