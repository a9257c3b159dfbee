"""The notebook of the documentation: executed, with fewer epochs, and shown with outputs of its own."""

import re
from typing import Any

import nbformat
import pytest

from scripts.notebook import NOTEBOOK, execute, without_paths


def texts(cell: Any) -> str:
    """Returns what a cell printed or showed, as text."""
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def masked(text: str) -> list[str]:
    """Returns the lines of a text up to its last result, without numbers and estimates."""
    lines = text.splitlines()
    results = [number for number, line in enumerate(lines) if "target test accuracy" in line]
    lines = lines[: results[-1] + 1] if results else lines
    return [re.sub(r"\d+(\.\d+)?|\(.* left\)", "", line).strip() for line in lines if line.strip()]


@pytest.mark.slow
def test_it_runs_from_data_to_a_conclusion(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shown = [texts(cell) for cell in notebook.cells if cell.cell_type == "code"]
    for cell in notebook.cells:
        cell.source = cell.source.replace('"epochs=20"', '"epochs=2", "pretrain.epochs=1"')
    executed = execute(notebook, tmp_path)
    now = [texts(cell) for cell in executed.cells if cell.cell_type == "code"]
    assert [masked(text) for text in now[4:6]] == [masked(text) for text in shown[4:6]]
    assert now[3].split("\n")[0] == shown[3].split("\n")[0], "the columns of the history"
    assert "target test accuracy" in now[1]
    assert "alpha=-1.0: must be finite" in now[4]
    # A job's report goes to its folder, and the cell shows a line.
    assert "scratch-a0-s0: target test accuracy" in now[5]
    assert "parameters" not in now[5]
    (log,) = tmp_path.glob("outputs/jobs/scratch-*-a0-s0-*/report.txt")
    assert "parameters" in log.read_text()
    html = [output["data"]["text/html"] for output in executed.cells[-5].outputs if "data" in output]
    assert "<table" in html[0]
    assert "<svg" in html[0]
    assert "/home/you/experiments/outputs" in without_paths(executed, tmp_path)


def test_it_is_shown_with_its_outputs_and_without_paths():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code[1:])
    text = NOTEBOOK.read_text()
    assert "/tmp/" not in text
    assert "/home/you/experiments/outputs" in text
