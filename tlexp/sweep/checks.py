"""What is wrong with a sweep, said before its first job."""

from collections.abc import Iterable

from tlexp.compare.study import methods_of
from tlexp.config import METRICS, Config
from tlexp.errors import UsageError
from tlexp.sweep.points import Point, Question


def check_declared(config: Config, question: Question) -> None:
    """Makes sure that what is to be compared varies.

    Raises:
        UsageError: where it does not.
    """
    known = [f"val/{role}/{name}" for role in ("target", "source") for name in METRICS]
    if config.monitor not in known:
        raise UsageError(f"monitor={config.monitor}: no such metric; choose one of {', '.join(known)}")
    values = {axis.name: axis.values for axis in question.axes}
    methods = methods_of(list(values)) if config.sweep.methods is None else config.sweep.methods
    axis, _, value = (config.sweep.baseline or "").partition("=")
    if config.sweep.baseline and (axis not in values or (values[axis] and value not in values[axis])):
        points = ", ".join(f"{axis}={value}" for value in values.get(axis, ())) or ", ".join(values)
        raise UsageError(f"sweep.baseline={config.sweep.baseline}: is no point of this sweep; there are {points}")
    if config.sweep.baseline and config.sweep.trials is None and axis not in methods:
        rule = f"{axis} is not compared but chosen by validation; add sweep.methods=[{axis}]"
        raise UsageError(f"sweep.baseline={config.sweep.baseline}: {rule}")
    if unknown := [axis for axis in config.sweep.methods or () if axis not in values]:
        raise UsageError(f"sweep.methods: {unknown[0]} is no axis of this sweep; there are {', '.join(values)}")


def check_measured(points: Iterable[Point]) -> None:
    """Makes sure that every job measures what is reported.

    Raises:
        UsageError: for a metric of a domain that a job does not test.
    """
    for config in (each.config for each in points):
        role = config.sweep.metric.split("/")[1]
        if (role == "source" and not config.has_source_loss) or (role == "shifted" and config.data.shifted is None):
            needs = "alpha above 0" if role == "source" else "a shifted test set, +dataset@data.shifted="
            raise UsageError(f"sweep.metric={config.sweep.metric}: every job must measure it, which needs {needs}")


def check_early(jobs: Iterable[Point]) -> None:
    """Says what would fail in every job before the first of them starts.

    Raises:
        UsageError: for an option of the trainer or a monitored metric that a job does not have.
    """
    from tlexp.checks import check_monitor, check_trainer  # torch only where something is to be trained

    alike = {(job.config.has_source_loss, str(job.config.trainer)): job.config for job in jobs}
    for config in alike.values():
        check_trainer(config)
        check_monitor(config, ["target", "source"] if config.has_source_loss else ["target"])
