"""Figures show what the runs' files hold."""

import numpy as np
import pytest
from PIL import Image

from lab.figures import draw_factor, draw_training, write_figures
from lab.records import Record
from ssl_weighting.app.report.boundaries import animate_boundaries, draw_boundaries, true_classes


def make_run(folder, error):
    """What figures read of a run: five evaluations, the last with ``error``."""
    folder.mkdir()
    rows = [
        f"{step},{error + 0.02 * left},0.5"
        for step, left in zip(range(20, 101, 20), (4, 3, 2, 1, 0), strict=True)
    ]
    (folder / "metrics.csv").write_text("\n".join(["step,test/error,validation/error", *rows]) + "\n")
    (folder / "config.yaml").write_text("{data: {}, model: {}, trainer: {}}")
    return folder


def records(tmp_path, sizes=(10, 100), seeds=3):
    found = []
    for size in sizes:
        for arm in ("fixed", "per_example"):
            for seed in range(seeds):
                error = 0.3 - size / 1000 + 0.01 * seed + 0.1 * (arm == "fixed")
                folder = make_run(tmp_path / f"{arm}{size}{seed}", error)
                figures = {"test_error": error, "validation_error": 0.5}
                levels = {"num_labeled": str(size)}
                found.append(Record("s", arm, levels, "fixed", seed, arm, figures, folder))
    return found


def test_error_over_training(tmp_path):
    figure = draw_training(records(tmp_path))
    fixed, per_example = figure.axes[0].lines
    assert fixed.get_label() == "fixed (3)"
    assert fixed.get_xdata().tolist() == [20, 40, 60, 80, 100]
    expected = 100 * np.array([0.3 - 0.01 + 0.01 + 0.02 * left for left in (4, 3, 2, 1, 0)])
    assert per_example.get_ydata() == pytest.approx(expected)
    band = figure.axes[0].collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((expected[-1] - 1, expected[0] + 1))
    assert "test error" in figure.axes[0].get_ylabel()


def test_error_over_a_factor(tmp_path):
    (axis,) = draw_factor(records(tmp_path)).axes
    assert axis.get_xscale() == "log"
    assert axis.lines[0].get_xdata().tolist() == [10, 100]
    assert axis.lines[0].get_ydata() == pytest.approx([40.0, 31.0])


def make_frames(path, frames=4, n=60):
    """A boundary that wanders to x = 0, which is the true one."""
    random = np.random.default_rng(0)
    points = random.uniform(-1, 1, (n, 2)).astype(np.float32)
    side = np.linspace(-1, 1, 100)
    classes = np.stack([np.tile(side > 0.6 * (1 - i / (frames - 1)), (100, 1)) for i in range(frames)])
    np.savez_compressed(
        path,
        steps=np.arange(frames) * 10,
        classes=classes.astype(np.uint8),
        weights=random.uniform(0, 2, (frames, n)).astype(np.float32),
        guesses=(points[:, 0] > 0).astype(np.int8)[None].repeat(frames, 0),
        points=points,
        labels=(points[:, 0] > 0).astype(np.int8),
        labeled=points[:4],
        labeled_labels=(points[:4, 0] > 0).astype(np.int8),
        extent=np.array([-1, 1, -1, 1], np.float32),
    )
    return path


def test_boundaries(tmp_path):
    arms = {arm: make_frames(tmp_path / f"{arm}.npz") for arm in ("fixed", "per_example")}
    with np.load(arms["fixed"]) as file:
        agreement = true_classes(dict(file)) == (np.linspace(-1, 1, 100) > 0)
    assert agreement.mean() > 0.85
    figure = draw_boundaries(arms)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[4] == "step 30: 0.0 % wrong" and titles[5] == "truth"
    animate_boundaries(arms, tmp_path / "moving.webp")
    with Image.open(tmp_path / "moving.webp") as moving:
        assert moving.n_frames == 4


def test_files(tmp_path):
    mine = records(tmp_path, seeds=1)
    make_frames(mine[0].folder / "boundary.npz")
    (tmp_path / "out").mkdir()
    write_figures(mine, tmp_path / "out", "s")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("s_training.png", "s_training.svg", "s_factor.png", "s_factor.svg"),
        *("s_boundary_10.png", "s_boundary_10.webp"),
    }
