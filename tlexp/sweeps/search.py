"""A search: Optuna suggests values, validation scores a trial, and the study on disk makes it resumable."""

from collections.abc import Iterator, Mapping
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, RangeSweep
from hydra.utils import instantiate

from tlexp.config.schema import Config
from tlexp.errors import UsageError
from tlexp.metric_names import higher_is_better
from tlexp.sqlite_address import sqlite_address
from tlexp.sweeps.jobs import Outcome, echo
from tlexp.sweeps.points import Axis, Composer, GridPoint, combinations
from tlexp.tracking.mlflow_run import MLflowRun

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

STUDY = "study.db"


class Search:
    """Proposes trials: values of every axis, each run for all repetitions.

    Replicate axes (seeds, draws) are not searched: a trial's value is the mean over them of the best validation value
    of each job, that of the checkpoint it kept. A trial with a job that diverged has failed; where a job fails for
    another reason, or is stopped, the study learns nothing, so that the next start repeats the trial.

    Raises:
        UsageError: where there is no axis to search.
    """

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        axes = composer.spec.axes
        self._searched = [axis for axis in axes if not axis.is_replicate]
        self._repetitions = combinations(axis for axis in axes if axis.is_replicate)
        if not self._searched:
            raise UsageError("sweep.trials: there is nothing to search; give an axis, such as 'lr=interval(0.001,0.1)'")
        self._batch: dict[int, tuple[Trial | FrozenTrial, list[GridPoint]]] = {}
        self._exhausted = False

    def open(self, folder: Path, config: Config, concurrent: int) -> list[tuple[GridPoint, bool]]:
        """Opens the study of the sweep's folder; returns the grid points of its trials, and whether a trial diverged.

        Raises:
            UsageError: where Optuna is not installed, or the study has another search space.
        """
        try:
            import optuna
        except ImportError:
            raise UsageError("sweep.trials: needs the package optuna; pip install 'tlexp[tune]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config, self._concurrent = config, concurrent
        self._space = {axis.name: distribution(axis) for axis in self._searched}
        self._study = self._open_study(folder)
        ended = self._ended_trials()
        return [(point, trial.state.name == "FAIL") for trial in ended for point in self._points(trial.params)]

    def _open_study(self, folder: Path) -> "Study":
        import optuna

        # Optuna takes the address for a format string.
        address = sqlite_address(folder / STUDY).replace("{", "{{").replace("}", "}}")
        study = optuna.create_study(
            storage=address,
            study_name=folder.name,
            direction="maximize" if higher_is_better(self._config.monitor) else "minimize",
            load_if_exists=True,
        )
        for trial in study.get_trials(deepcopy=False):
            if trial.distributions.keys() != self._space.keys() and trial.state.name == "RUNNING":
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # killed before it had values
                continue
            for name, known in trial.distributions.items():
                try:
                    optuna.distributions.check_distribution_compatibility(known, self._space[name])
                except ValueError:
                    remedy = f"was created with {name} as {known}; give the same values, or sweep.name= a new name"
                    raise UsageError(f"{folder / STUDY}: {remedy}") from None
        return study

    def propose(self) -> Iterator[list[GridPoint]]:
        """Yields the grid points of trials until the study has enough of them; interrupted trials come first."""
        from optuna.trial import TrialState

        total = self._config.sweep.trials or 0
        interrupted = iter(self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]))
        ended = len(self._ended_trials())
        echo(f"study of {total} trials, {ended} of them complete; {len(self._repetitions)} job(s) per trial")
        while ended < total and not self._exhausted:
            size = min(max(1, self._concurrent // len(self._repetitions)), total - ended)
            batch: list[Trial | FrozenTrial] = list(islice(interrupted, size))
            while len(batch) < size:
                # A sampler of its own for each trial: what is suggested depends on the trials before, not on restarts.
                self._study.sampler = self._sampler(ended + len(batch))
                batch.append(self._study.ask(self._space))
            self._batch = {trial.number: (trial, self._points(trial.params)) for trial in batch}
            yield [point for _, points in self._batch.values() for point in points]
            ended += size

    def observe(self, outcomes: Mapping[str, Outcome]) -> None:
        """Tells the study how the trials of the last batch ended."""
        for trial, points in self._batch.values():
            self._tell(trial, [outcomes[point.key] for point in points])

    def close(self, run: MLflowRun) -> None:
        """Logs the best value so far by trial to the sweep's run."""
        from optuna.trial import TrialState

        complete = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if not complete:
            return
        better = max if self._study.direction.name == "MAXIMIZE" else min
        best_so_far = accumulate((float(trial.value or 0.0) for trial in complete), better)
        for trial, value in zip(complete, best_so_far, strict=True):
            run.log_metrics({"search/best_so_far": value}, step=trial.number)
        best = f"{self._study.best_trial.params}, {self._config.monitor} {self._study.best_value:.4f}"
        echo(f"best of {len(complete)} trials: {best}")

    def _ended_trials(self) -> "list[FrozenTrial]":
        """Returns the trials with an end; those that were killed before they had values are left out."""
        from optuna.trial import TrialState

        ended = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.FAIL])
        return [trial for trial in ended if trial.params]

    def _sampler(self, number: int) -> Any:
        """Returns the sampler for the trial of this number."""
        node = dict(self._config.sweep.sampler)
        if node.get("seed") is not None:
            node["seed"] += number
        try:
            return instantiate(node)
        except Exception as error:
            raise UsageError(f"sweep.sampler: cannot build {node.get('_target_')}: {error}") from error

    def _points(self, params: dict[str, Any]) -> list[GridPoint]:
        """Returns the grid points of a trial, one for each repetition."""
        values = {axis.key: as_override(params[axis.name]) for axis in self._searched}
        return [self._composer.point({**values, **repetition}) for repetition in self._repetitions]

    def _tell(self, trial: "Trial | FrozenTrial", outcomes: list[Outcome]) -> None:
        from optuna.trial import TrialState

        if any(outcome.diverged for outcome in outcomes):
            self._pass_on(trial, state=TrialState.FAIL)
            echo(f"trial {trial.number}: diverged")
            return
        scores = [outcome.score for outcome in outcomes if outcome.score is not None]
        if len(scores) < len(outcomes):
            echo(f"trial {trial.number}: failed; the next start repeats it")
            return
        value = sum(scores) / len(scores)
        self._pass_on(trial, value=value)
        best = self._study.best_trial
        monitor = self._config.monitor
        echo(f"trial {trial.number}: {monitor} {value:.4f}; best {best.value:.4f} (trial {best.number})")

    def _pass_on(self, trial: "Trial | FrozenTrial", **result: Any) -> None:
        """Tells the study; a sampler with nothing left to suggest ends the search."""
        try:
            self._study.tell(trial.number, result.get("value"), state=result.get("state"))
        except RuntimeError as error:
            if "Study.stop" not in str(error):  # which samplers call when all combinations were tried
                raise
            self._exhausted = True
            echo("the sampler has nothing left to suggest")


def distribution(axis: Axis) -> "BaseDistribution":
    """Returns what Optuna draws an axis from: an interval or a range of numbers, else a choice.

    Raises:
        UsageError: for a glob, which names files rather than values to search.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = axis.override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        assert low is not None
        assert high is not None
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    if isinstance(value, RangeSweep) and len(axis.values) > 1:
        low, high, step = float(axis.values[0]), float(axis.values[-1]), float(axis.values[1]) - float(axis.values[0])
        if all(number.is_integer() for number in (low, high, step)):
            return IntDistribution(int(low), int(high), step=int(step))
        return FloatDistribution(low, high, step=step)
    if isinstance(value, ChoiceSweep | RangeSweep | Glob):
        return CategoricalDistribution(axis.values)
    raise UsageError(f"{axis.override.input_line}: cannot be searched; give a choice, a range or an interval")


def as_override(value: object) -> str:
    """Returns a suggested value as an override: a number so that it is read back unchanged."""
    return repr(value) if isinstance(value, float) else str(value)
