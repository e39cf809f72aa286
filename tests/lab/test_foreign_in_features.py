"""The table of what belongs: its measure of calibration, a row, and its sentence."""

import numpy as np
import pytest

from lab.claims import foreign_in_features as claim


def test_calibration_error_by_hand():
    """Bins [.2, .3): mean .25, share 1/2; [.9, 1]: mean .95, share 1."""
    found = claim.calibration_error(
        np.array([0.2, 0.3 - 1e-9, 0.9, 1.0]), np.array([True, False, True, True])
    )
    assert found == pytest.approx(0.5 * 0.25 + 0.5 * 0.05)


def test_a_row_and_what_the_table_says(folder, monkeypatch):
    monkeypatch.setattr(claim, "SIZE", 200)
    (row,) = claim.run(folder, "six animals", 5, 0.5, 0)
    assert float(row["ours"]) > 0.9 and float(row["ours_test"]) > 0.9
    assert row["true_share"] == "0.5000" and abs(float(row["share"]) - 0.5) < 0.25
    rows = [
        row
        | {
            "split": "six animals",
            "labels": "5",
            "foreign": "0.5",
            "seed": str(seed),
            "ours": ours,
            "mean": "0.9",
        }
        for seed, ours in enumerate(("0.7", "0.8"))
    ]
    said = claim.table(rows)
    assert "| six animals, 5, 0.5 (2) | 0.750 |" in said
    assert "nearest class mean in six animals, 5, 0.5: -0.150 ± " in said
