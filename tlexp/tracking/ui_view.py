"""MLflow's page of a sweep: its columns and charts, as a saved view in MLflow's own menu `Views`.

MLflow 3.17 keeps the views that people save as tags of the experiment, under keys and in a form of its own; another
version may not know them, and then shows its own defaults.
"""

import base64
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tlexp.tracking.client import PARENT
from tlexp.tracking.mlflow_run import best_effort

if TYPE_CHECKING:
    from mlflow import MlflowClient

VIEW_PREFIX = "mlflow.sharedViewState."
KIND = "mlflow.experimentKind"  # runs rather than traces on the first page
PARAMS = {"strategy": "strategy.name", "backbone": "backbone.name", "data": "data.name"}  # parameter of an axis
LINES = ("val/target/nll", "val/target/accuracy", "train/target/loss")


def save_view(client: "MlflowClient", experiment: str, parent: str, manifest: Mapping[str, Any]) -> None:
    """Saves the view of a sweep, under the name of the sweep."""
    now = int(time.time() * 1000)
    state = json.dumps(view_state(parent, manifest["axes"], manifest["metric"]), separators=(",", ":"))
    packed = "deflate;" + base64.b64encode(zlib.compress(state.encode(), 9)).decode()  # tags hold 5,000 characters
    content = {"name": manifest["name"], "createdAt": now, "updatedAt": now, "state": packed}
    with best_effort("the view could not be saved"):
        client.set_experiment_tag(experiment, KIND, "custom_model_development")
        client.set_experiment_tag(experiment, VIEW_PREFIX + parent, json.dumps(content))


def view_state(parent: str, axes: Sequence[str], metric: str) -> dict[str, Any]:
    """Returns what the page of a sweep shows: its jobs, their axes, validation score and test metric."""
    params = [PARAMS.get(axis, axis) for axis in axes]
    columns = [f"params.`{name}`" for name in params]
    columns += [f"metrics.`{name}`" for name in ("score", metric)]
    return {
        "searchFilter": f"tags.`{PARENT}` = '{parent}'",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [{"uuid": "tlexp", "name": "Sweep", "display": True, "isReordered": False}],
        "compareRunCharts": charts(params, metric),
        "hideEmptyCharts": True,
    }


def charts(params: Sequence[str], metric: str) -> list[dict[str, Any]]:
    """Returns the charts of the page: the sweep at a glance, alpha against the test, and the course of training."""
    first = params[0] if params else "seed"
    across = "alpha" if "alpha" in params else first
    point = {"key": across, "type": "PARAM"}
    chosen = [
        {"type": "PARALLEL", "selectedParams": list(params), "selectedMetrics": ["score", metric], "showAllRuns": True},
        {"type": "SCATTER", "xaxis": point, "yaxis": {"key": metric, "type": "METRIC"}, "runsCountToCompare": 100},
        {"type": "BAR", "metricKey": metric, "runsCountToCompare": 100},
        *({"type": "LINE", "metricKey": name, "selectedMetricKeys": [name], "lineSmoothness": 0} for name in LINES),
    ]
    common = {"metricSectionId": "tlexp", "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    common |= {"useGlobalLineSmoothing": False, "xAxisKey": "step", "scaleType": "linear"}
    return [{**common, "uuid": f"tlexp-{index}", **chart} for index, chart in enumerate(chosen)]
