"""The notebook of the documentation runs, and the learned weights win; its stored outputs tell nothing of a machine."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "example.ipynb"


def printed(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return "".join(
        out.text
        for cell in cells
        for out in cell.outputs
        if out.output_type == "stream" and out.name == "stdout"
    )


def test_it_was_executed_in_order_and_names_no_place_of_a_machine():
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    counts = [cell.execution_count for cell in stored.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [out for cell in stored.cells if cell.cell_type == "code" for out in cell.outputs]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert not [out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"]
    assert not re.search(r"/(home|root|work|tmp|Users)/|site-packages", printed(stored))


@pytest.mark.slow
def test_it_runs_and_the_learned_weights_win(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    plain, learned = (
        float(share) for share in re.findall(r"([\d.]+) % of the pool wrong", printed(notebook))
    )
    assert learned < plain / 2
    raised, others = (float(share) for share in re.findall(r"([\d.]+) % taken wrongly", printed(notebook)))
    assert raised > 2 * others
