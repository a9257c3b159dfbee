"""Executes `docs/notebook.ipynb` in an empty folder and keeps its outputs, with that folder's path shortened.

python scripts/notebook.py
"""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parent.parent / "docs/notebook.ipynb"
FOLDER = "/home/you/experiments"
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Executes a notebook in `folder`.

    Raises:
        nbclient.exceptions.CellExecutionError: for a cell that raises.
    """
    client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": folder}})
    executed: NotebookNode = client.execute()
    return executed


def without_paths(notebook: NotebookNode, folder: Path) -> str:
    """Returns the notebook as text, with what only this machine knows taken out."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of each cell
        if cell.cell_type == "code":  # a progress bar is drawn by a running kernel only
            cell.outputs = [output for output in cell.outputs if not _is_a_bar(output.get("data"))]
    notebook.metadata = nbformat.from_dict({"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    return str(nbformat.writes(notebook)).replace(str(folder), FOLDER) + "\n"


def _is_a_bar(data: dict[str, str] | None) -> bool:
    return data is not None and (WIDGET in data or not data.get("text/plain", "").strip())


def main() -> None:
    """Entry point."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        executed = execute(nbformat.read(NOTEBOOK, as_version=4), folder)
        NOTEBOOK.write_text(without_paths(executed, folder))


if __name__ == "__main__":
    main()
