"""Reading a sweep's folder: which jobs it counts, and where they are."""

import json
import re
from pathlib import Path
from typing import Any

from tlexp.errors import UsageError

LAYOUT = "sweep.json"  # what a sweep writes down of what it asks
KEY_LENGTH = 12  # of the key that a job's folder ends with
# Axes that repeat a question rather than change it.
REPLICATES = ("seed", "data.draw", "split_seed", "pretrain.seed")


def job_folders(folder: Path) -> list[Path]:
    """Returns the folders of the finished jobs that a sweep counts; of a folder of jobs, all that are finished."""
    file = folder / LAYOUT
    if not file.is_file():
        return sorted(found.parent for found in folder.glob("*/metrics.json"))
    content = json.loads(file.read_text())
    keys = dict.fromkeys(point["key"] for point in content["points"])
    return [found.parent for key in keys for found in Path(content["jobs"]).glob(f"*-{key}/metrics.json")]


def read_result(folder: Path) -> dict[str, Any]:
    """Returns the `metrics.json` of a job that is done.

    Raises:
        UsageError: for a file that is torn.
    """
    file = folder / "metrics.json"
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except ValueError:
        raise UsageError(f"{file}: is torn; delete it, and its job runs again") from None
    return content


def short(value: str) -> str:
    """Returns a number with the digits that tell it from others; anything else as it is."""
    return f"{float(value):.4g}" if re.fullmatch(r"-?\d+\.\d{5,}(e-?\d+)?", value) else value
