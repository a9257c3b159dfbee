"""What goes to MLflow and when, and the true status of a run on every way out.

Only this package knows MLflow. A run is opened and closed by the process that owns the job, whatever happens to the
processes that train; these get the run's id and add to it.
"""

from tlexp.tracking.record import EpochRecorder, Record, bookkeeping, final_metrics
from tlexp.tracking.results import all_sweeps, find, read_runs, read_sweep, sweep_id
from tlexp.tracking.runs import attached, checkpoint_at, checkpoint_of, finish, tracked
from tlexp.tracking.stale import LOCK
from tlexp.tracking.store import connect
from tlexp.tracking.sweeps import Parent, children, jobs_address, sweep_tracked

__all__ = [
    "LOCK",
    "EpochRecorder",
    "Parent",
    "Record",
    "all_sweeps",
    "attached",
    "bookkeeping",
    "checkpoint_at",
    "checkpoint_of",
    "children",
    "connect",
    "final_metrics",
    "find",
    "finish",
    "jobs_address",
    "read_runs",
    "read_sweep",
    "sweep_id",
    "sweep_tracked",
    "tracked",
]
