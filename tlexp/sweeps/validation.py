"""Mistakes in a sweep, reported in one line before its first job."""

from collections.abc import Iterable, Sequence

from tlexp.comparison.axes import REPLICATES, changes_test_set, method_axes
from tlexp.config.schema import Config
from tlexp.errors import UsageError
from tlexp.metric_names import validation_metrics
from tlexp.sweeps.points import GridPoint, SweepSpec


def validate_spec(config: Config, spec: SweepSpec) -> None:
    """Checks that what is to be compared varies.

    Raises:
        UsageError: where it does not.
    """
    known = validation_metrics(["target", "source"])
    if config.monitor not in known:
        raise UsageError(f"monitor={config.monitor}: no such metric; choose one of {', '.join(known)}")
    values = {axis.name: axis.values for axis in spec.axes}
    methods = method_axes(list(values)) if config.sweep.methods is None else config.sweep.methods
    axis, _, value = (config.sweep.baseline or "").partition("=")
    if config.sweep.baseline and (axis not in values or (values[axis] and value not in values[axis])):
        choices = ", ".join(f"{axis}={value}" for value in values.get(axis, ())) or ", ".join(values)
        raise UsageError(f"sweep.baseline={config.sweep.baseline}: not in this sweep; choose one of {choices}")
    if config.sweep.baseline and config.sweep.trials is None and axis not in methods:
        remedy = f"{axis} is not compared but selected by validation; add sweep.methods=[{axis}]"
        raise UsageError(f"sweep.baseline={config.sweep.baseline}: {remedy}")
    if different := [axis for axis in methods if changes_test_set(axis)]:
        remedy = "its values have different test sets, so they are problems and no methods; leave it out"
        raise UsageError(f"sweep.methods: {different[0]}: {remedy}")
    if unknown := [axis for axis in config.sweep.methods or () if axis not in values]:
        raise UsageError(f"sweep.methods: {unknown[0]} is not an axis of this sweep; choose of {', '.join(values)}")


def validate_jobs(jobs: Iterable[GridPoint]) -> None:
    """Reports what would fail in every job before the first of them starts.

    Raises:
        UsageError: for an option of the Trainer or a monitored metric that a job does not have.
    """
    from tlexp.runs.trainer_options import validate_trainer  # torch only where something will train
    from tlexp.runs.validation import validate_monitor

    distinct = {(job.config.weights.roles, str(job.config.trainer)): job.config for job in jobs}
    for config in distinct.values():
        validate_trainer(config)
        validate_monitor(config)


def mistake_of(job: GridPoint) -> str | None:
    """Returns the mistake for which a job would fail before it trains, in one line; None for none, or another fault."""
    from tlexp.runs.run import prepare

    try:
        prepare(job.config)
    except UsageError as error:
        return " ".join(str(error).split())
    except Exception:  # whatever it is, the job will say it
        return None
    return None


def is_shared(mistake: str, failed: GridPoint, others: Sequence[GridPoint]) -> bool:
    """Returns whether all jobs of a sweep would fail by the same mistake.

    Built without training: the last one, and of each value of an axis that the failed one does not have some job.
    """
    seen = {item for item in failed.values.items() if item[0] not in REPLICATES}
    chosen = [others[-1]]
    for job in others:
        values = {item for item in job.values.items() if item[0] not in REPLICATES}
        if values - seen:
            chosen.append(job)
            seen |= values
    return all(mistake_of(job) == mistake for job in chosen)
