"""A search: Optuna suggests values, a trial is judged by validation, the study is on disk and goes on where it was."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, RangeSweep
from hydra.utils import instantiate

from tlexp import tracking
from tlexp.config import METRICS
from tlexp.errors import UsageError
from tlexp.sweep.multirun import Multirun, Outcome, say
from tlexp.sweep.points import Axis, Point, Question, combinations, parsed

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

STUDY = "study.db"


class Search(Multirun):
    """Trials of which each is a value of every axis, run for every repetition that is asked for.

    Seeds and draws are not searched: a trial's value is the mean over them of the best validation value that each job
    reached, that of the checkpoint it kept. A trial with a job that diverges is a failed one; where a job fails for
    another reason, or is stopped, nothing is told, so that the next start takes the trial up again.
    """

    def run(self, params: dict[str, Any], arguments: Sequence[str]) -> dict[str, Outcome]:
        """Runs the trials that the study lacks.

        Raises:
            UsageError: where Optuna is not installed, or the study was begun with another space.
            JobsFailed: at the end, where a job failed.
        """
        question = parsed(self.loader, params, arguments)
        self.searched = [axis for axis in question.axes if not axis.repeats]
        self.repetitions = combinations(axis for axis in question.axes if axis.repeats)
        if not self.searched:
            raise UsageError("sweep.trials: there is nothing to search; give an axis, such as 'lr=interval(0.001,0.1)'")
        with self.under_way(question) as parent:
            study = self.study()
            points = self.told_before(question, study, parent)
            self.write(question, points, parent)
            for batch in self.batches(study):
                asked = {trial.number: self.points_of(question, trial.params) for trial in batch}
                points += [each for trial in asked.values() for each in trial]
                self.write(question, points, parent)  # a kill leaves what can be compared
                self.evaluate([each for trial in asked.values() for each in trial], parent)
                for trial in batch:
                    self.tell(study, trial, asked[trial.number])
                if self.config.sweep.fail_fast and any(outcome.error for outcome in self.outcomes.values()):
                    break
            self.conclude(question, points, parent)
            self.record_search(study, parent)
        self.judge(points)
        return self.outcomes

    # The study -------------------------------------------------------------------------------------------------

    def study(self) -> "Study":
        """Returns the study of this sweep's folder, made where there is none.

        Raises:
            UsageError: where Optuna is not installed, or the study was begun with another space.
        """
        try:
            import optuna
        except ImportError:
            raise UsageError("sweep.trials: needs the package optuna; pip install 'tlexp[tune]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = {axis.name: distribution(axis) for axis in self.searched}
        more = METRICS[self.config.monitor.rsplit("/", 1)[-1]]
        study = optuna.create_study(
            storage=f"sqlite:///{self.folder / STUDY}",
            study_name=self.folder.name,
            direction="maximize" if more else "minimize",
            load_if_exists=True,
        )
        for trial in study.get_trials(deepcopy=False):
            if trial.distributions.keys() != self.space.keys() and trial.state.name == "RUNNING":
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # killed before it was asked
                continue
            for name, found in trial.distributions.items():
                try:
                    optuna.distributions.check_distribution_compatibility(found, self.space[name])
                except ValueError:
                    rule = f"was begun with {name} as {found}; give the same values, or sweep.name= a new name"
                    raise UsageError(f"{self.folder / STUDY}: {rule}") from None
        return study

    def batches(self, study: "Study") -> "Iterator[list[Trial | FrozenTrial]]":
        """Yields trials until the study has as many as were asked for; those that were interrupted come first."""
        from optuna.trial import TrialState

        wanted = self.config.sweep.trials or 0
        interrupted = iter(study.get_trials(deepcopy=False, states=[TrialState.RUNNING]))
        told = len(self.told_trials(study))
        say(f"study of {wanted} trials, {told} of them told; {len(self.repetitions)} job(s) in each")
        self.exhausted = False
        while told < wanted and not self.exhausted:
            size = min(max(1, self.at_once // len(self.repetitions)), wanted - told)
            batch: list[Trial | FrozenTrial] = list(islice(interrupted, size))
            while len(batch) < size:
                # A sampler of its own for each trial: what is suggested depends on the trials before, not on restarts.
                study.sampler = self.sampler(told + len(batch))
                batch.append(study.ask(self.space))
            yield batch
            told += size

    def told_trials(self, study: "Study") -> "list[FrozenTrial]":
        """Returns the trials with an end; those that were killed before they had any values are none."""
        from optuna.trial import TrialState

        ended = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.FAIL])
        return [trial for trial in ended if trial.params]

    def sampler(self, number: int) -> Any:
        """Returns the sampler for the trial of this number."""
        node = dict(self.config.sweep.sampler)
        if node.get("seed") is not None:
            node["seed"] += number
        try:
            return instantiate(node)
        except Exception as error:
            raise UsageError(f"sweep.sampler: {node.get('_target_')} cannot be built: {error}") from error

    def points_of(self, question: Question, params: dict[str, Any]) -> list[Point]:
        """Returns the points of a trial, one for each repetition."""
        values = {axis.key: written(params[axis.name]) for axis in self.searched}
        return self.points(question, [{**values, **repetition} for repetition in self.repetitions])

    def tell(self, study: "Study", trial: "Trial | FrozenTrial", points: Sequence[Point]) -> None:
        """Tells the study how a trial ended."""
        from optuna.trial import TrialState

        outcomes = [self.outcomes[each.key] for each in points]
        if any(outcome.diverged for outcome in outcomes):
            self.told(study, trial, state=TrialState.FAIL)
            say(f"trial {trial.number}: diverged")
            return
        scores = [outcome.score for outcome in outcomes if outcome.score is not None]
        if len(scores) < len(points):
            say(f"trial {trial.number}: failed, and is tried again by the next start")
            return
        value = sum(scores) / len(scores)
        self.told(study, trial, value=value)
        best = study.best_trial
        say(f"trial {trial.number}: {self.config.monitor} {value:.4f}; best {best.value:.4f} of trial {best.number}")

    def told(self, study: "Study", trial: "Trial | FrozenTrial", **how: Any) -> None:
        """Passes on how a trial ended; a sampler with nothing left to suggest ends the search."""
        try:
            study.tell(trial.number, how.get("value"), state=how.get("state"))
        except RuntimeError as error:
            if "Study.stop" not in str(error):  # which samplers call when all combinations were tried
                raise
            self.exhausted = True
            say("the sampler has no more to suggest")

    def told_before(self, question: Question, study: "Study", parent: tracking.Parent) -> list[Point]:
        """Returns the points of the trials that ended before this command, with their outcomes taken."""
        found = []
        for trial in self.told_trials(study):
            for each in self.points_of(question, trial.params):
                found.append(each)
                if (folder := self.complete(each)) is not None:
                    self.count(each, folder, parent)
                else:
                    self.outcomes[each.key] = Outcome(error="diverged before", diverged=True)
        return found

    def record_search(self, study: "Study", parent: tracking.Parent) -> None:
        """Adds the course of the search to the sweep's run: the best value so far by trial."""
        from optuna.trial import TrialState

        complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if not complete:
            return
        pick = max if study.direction.name == "MAXIMIZE" else min
        values = [float(trial.value or 0.0) for trial in complete]
        for place, trial in enumerate(complete):
            parent.record.metrics({"search/best_so_far": pick(values[: place + 1])}, step=trial.number)
        say(f"best of {len(complete)} trials: {study.best_trial.params}, {self.config.monitor} {study.best_value:.4f}")


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


def written(value: object) -> str:
    """Returns a suggested value as an override has it: a number so that it is read back the same."""
    return repr(value) if isinstance(value, float) else str(value)
