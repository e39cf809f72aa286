"""Tables over runs, against numpy and scipy; and what must not be averaged."""

import csv
import json
import math
import re

import numpy as np
import pytest
import yaml
from scipy import stats

from lab.records import figures_of, read_records
from lab.tables import paired_difference, spread, write_tables
from ssl_weighting.errors import UserError

ARMS = {"supervised": 3.0, "fixed": 0.0, "per_example": -1.0}


def make_run(
    folder, seed, error, weighting="fixed", steps=100, split=None, evaluations=2, labeled=10, **pool
):
    """The files of a finished run: the errors end at ``error``."""
    folder.mkdir(parents=True)
    config = {
        "seed_everything": seed,
        "data": {"class_path": "Digits"},
        "model": {
            "weighting": {"kind": weighting},
            "algorithm": {"class_path": "ssl_weighting.algorithms.UDA"},
        },
        "trainer": {"max_steps": steps},
        "runs": str(folder),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lists = {"labeled": list(range(labeled)), "validation": [50, 51], "unlabeled": list(range(40))}
    split = {"sha256": split or f"split{seed} of {labeled}", "data_set": "digits"} | lists
    (folder / "split.json").write_text(json.dumps(split))
    columns = ["step", "validation/error", "test/error", *(f"pool/{name}" for name in pool)]
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for i in range(1, evaluations + 1):
            left = evaluations - i
            row = {
                "step": steps * i // evaluations,
                "validation/error": error + 0.01 * left,
                "test/error": error + 0.02 * left,
            }
            writer.writerow(row | {f"pool/{name}": values[i - 1] for name, values in pool.items()})
    return folder


def make_study(folder, seeds=4, sizes=(10, 20), **more):
    """A study's folder: errors of seed s at size n are known."""
    rows = []
    for size in sizes:
        for arm in ARMS:
            for seed in range(seeds):
                name = f"runs/{arm}{size}_seed{seed}"
                run = make_run(folder / name, seed, error_of(arm, size, seed) / 100, labeled=size, **more)
                row = {
                    "study": "tiny",
                    "control": "fixed",
                    "arm": arm,
                    "factor.num_labeled": size,
                    "seed": seed,
                }
                rows.append(row | {"settings": arm} | figures_of(run) | {"commit": "abc", "folder": name})
    write_rows(folder, rows)
    return rows


def write_rows(folder, rows):
    with open(folder / "runs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)


def error_of(arm, size, seed):
    return 20 + ARMS[arm] - size / 10 + 2 * math.sin(seed) + 0.3 * math.cos(7 * seed + size + ARMS[arm])


def cells(markdown, title):
    """The first table after a title: row name → its cells."""
    table = markdown[markdown.index(title) :].split("\n\n|", 1)[1].split("\n\n")[0]
    rows = re.findall(r"^\| (.*) \|$", f"|{table}", re.M)
    return {r.split(" | ")[0]: r.split(" | ")[1:] for r in rows}


def test_mean_and_deviation():
    values = [3.0, 4.5, 9.25]
    assert (spread(values).mean, spread(values).std) == pytest.approx(
        (np.mean(values), np.std(values, ddof=1))
    )
    assert str(spread([3.0])) == "3.00"


def test_paired_interval_is_scipys():
    random = np.random.default_rng(0)
    a, b = random.normal(size=9), random.normal(size=9)
    ours, theirs = paired_difference(list(a), list(b)), stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((np.mean(a - b), theirs.low, theirs.high))
    assert ours.n == 9
    assert math.isnan(paired_difference([1.0], [2.0]).low)


def test_tables_of_a_study(tmp_path):
    make_study(tmp_path / "study")
    write_tables([tmp_path / "study"], tmp_path / "out")
    text = (tmp_path / "out" / "tiny.md").read_text()
    table = cells(text, "## Test error")
    assert list(table) == ["num_labeled", "supervised", "fixed", "per_example"]
    assert table["num_labeled"] == ["10", "20"]
    for arm in ARMS:
        for size, shown in zip((10, 20), table[arm], strict=True):
            errors = [error_of(arm, size, seed) for seed in range(4)]
            assert shown == f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f}"
    differences = cells(text, "Less the error of `fixed`")
    assert list(differences) == ["num_labeled", "supervised", "per_example"]
    pairs = [[error_of(arm, 20, seed) for seed in range(4)] for arm in ("per_example", "fixed")]
    interval = stats.ttest_rel(*pairs).confidence_interval(0.95)
    mean = np.mean(np.subtract(*pairs))
    assert differences["per_example"][1] == f"{mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
    rows = list(csv.DictReader((tmp_path / "out" / "tiny.csv").open()))
    assert len(rows) == 6
    assert float(rows[-1]["test_low"]) == pytest.approx(interval.low)
    assert rows[-1]["pairs"] == "4"
    for name in ("tiny_training.png", "tiny_training.svg", "tiny_factor.png", "tiny_factor.svg"):
        assert (tmp_path / "out" / name).stat().st_size > 5000


def test_the_median_of_the_last_20_evaluations(tmp_path):
    run = make_run(tmp_path / "often", 0, 0.1, evaluations=30)
    assert figures_of(run)["test_error_median"] == pytest.approx(
        np.median([0.1 + 0.02 * i for i in range(20)])
    )
    assert "test_error_median" not in figures_of(make_run(tmp_path / "seldom", 0, 0.1, evaluations=19))
    write_tables([run], tmp_path / "out")
    assert "median of the last 20" in (tmp_path / "out" / "runs.md").read_text()


def test_the_moment_of_most_error(tmp_path):
    nothing = ""  # no weight had moved
    pool = {
        "pseudo_label_error": [0.9, 0.4, 0.6, 0.1],
        "right_auroc_weight": [nothing, 0.7, 0.8, 0.6],
        "right_auroc_confidence": [0.5, 0.5, 0.55, 0.5],
    }
    figures = figures_of(make_run(tmp_path / "run", 0, 0.1, evaluations=4, **pool))
    assert figures["worst_step"] == 75
    assert (figures["worst_right_auroc_weight"], figures["worst_right_auroc_confidence"]) == (0.8, 0.55)
    assert (figures["right_auroc_weight"], figures["pseudo_label_error"]) == (0.6, 0.1)


def test_a_control_that_ran_once_serves_all_levels_of_the_same_split(tmp_path):
    rows = make_study(tmp_path / "study", sizes=(10,))
    for row in rows:
        row["factor.weight_lr"] = row.pop("factor.num_labeled")
    more = [dict(row, **{"factor.weight_lr": 99}) for row in rows if row["arm"] == "per_example"]
    write_rows(tmp_path / "study", rows + more)
    write_tables([tmp_path / "study" / "runs.csv"], tmp_path / "out")
    found = cells((tmp_path / "out" / "tiny.md").read_text(), "Less the error of `fixed`")
    assert found["per_example"][0] == found["per_example"][1] != ""


def test_a_control_that_ran_at_one_step_size_but_all_label_counts(tmp_path):
    rows = make_study(tmp_path / "study")
    for row in rows:
        row["factor.weight_lr"] = 1
    more = [dict(row, **{"factor.weight_lr": 99}) for row in rows if row["arm"] == "per_example"]
    write_rows(tmp_path / "study", rows + more)
    write_tables([tmp_path / "study" / "runs.csv"], tmp_path / "out")
    with open(tmp_path / "out" / "tiny.csv", newline="") as file:
        table = {
            (r["arm"], r["num_labeled"], r["weight_lr"]): r["test_difference"] for r in csv.DictReader(file)
        }
    for size in ("10", "20"):
        assert table["per_example", size, "1"] == table["per_example", size, "99"] != ""
    assert table["per_example", "10", "99"] != table["per_example", "20", "99"]


def test_runs_by_their_own_folders(tmp_path):
    runs = [
        make_run(tmp_path / f"{weighting}{seed}", seed, 0.1 + 0.01 * seed - shift, weighting)
        for weighting, shift in (("fixed", 0.0), ("per_example", 0.05))
        for seed in range(3)
    ]
    write_tables(runs, tmp_path / "out")
    text = (tmp_path / "out" / "runs.md").read_text()
    assert cells(text, "## Test error")["UDA per_example, data digits"] == ["6.00 ± 1.00"]
    assert cells(text, "Less the error of `UDA fixed`")["UDA per_example, data digits"] == [
        "-5.00 [-5.00, -5.00]"
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 200}, "budgets"),
        ({"labeled": 11}, "labelled examples"),
        ({"split": "another"}, "different splits at seed 1"),
        ({"seed": 0}, "seed 0 is there twice"),
        ({"settings": "changed"}, "different settings"),
        ({"evaluations": 7}, "numbers of evaluations"),
    ],
)
def test_what_differs_is_not_averaged(tmp_path, change, said):
    rows = make_study(tmp_path / "study", seeds=2)
    rows[3] |= change  # fixed, 10 labels, seed 1
    write_rows(tmp_path / "study", rows)
    with pytest.raises(UserError, match=said) as caught:
        write_tables([tmp_path / "study"], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folders_of_different_budgets_are_refused(tmp_path):
    runs = [make_run(tmp_path / "a", 0, 0.1), make_run(tmp_path / "b", 1, 0.1, steps=300)]
    with pytest.raises(UserError, match="budgets"):
        read_records(runs)


def test_what_is_no_finished_run_is_refused(tmp_path):
    run = make_run(tmp_path / "run", 0, 0.1)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["max_steps"] = 500
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="not finished, 100 of 500"):
        read_records([run])
    with pytest.raises(UserError, match="neither"):
        read_records([tmp_path])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not the table of a study"):
        read_records([tmp_path / "other.csv"])
