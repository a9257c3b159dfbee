"""Reading a sweep's folder: which jobs it counts, and where they are."""

import json
from pathlib import Path

LAYOUT = "sweep.json"  # what a sweep writes down of what it asks


def job_folders(folder: Path) -> list[Path]:
    """Returns the folders of the finished jobs that a sweep counts; of a folder of jobs, all that are finished."""
    file = folder / LAYOUT
    if not file.is_file():
        return sorted(found.parent for found in folder.glob("*/metrics.json"))
    content = json.loads(file.read_text())
    keys = dict.fromkeys(point["key"] for point in content["points"])
    return [found.parent for key in keys for found in Path(content["jobs"]).glob(f"*-{key}/metrics.json")]
