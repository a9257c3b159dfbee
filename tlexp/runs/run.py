"""One job from configuration to result: the source's own run if it is needed, then training, test and record."""

from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from tlexp import run_folder
from tlexp.config.schema import SOURCE_RUN, Config
from tlexp.data.class_names import difference
from tlexp.errors import UsageError
from tlexp.overrides import argument
from tlexp.processes import count_ranks
from tlexp.reporting.console import Output
from tlexp.runs.build import build, build_terms, validate
from tlexp.runs.domains import read_domain
from tlexp.runs.launch_ranks import run_ranks
from tlexp.runs.run_result import RunResult
from tlexp.runs.source_weights import source_folder
from tlexp.runs.train import train
from tlexp.runs.validation import validate_terms
from tlexp.signals import Stopped
from tlexp.tracking.runs import close_complete, track_run


def run(config: Config, folder: Path, output: Output | None = None) -> RunResult:
    """Runs one configuration, unless its folder holds the result already.

    Args:
        config: a checked configuration with absolute paths.
        folder: where this run's files go; `metrics.json`, written last, marks it as complete.
        output: where reports go; None for the screen.

    Returns:
        The result; its `score` is the best validation value of `config.monitor`, that of the checkpoint kept.

    Raises:
        UsageError: for a mistake of the user, before training starts.
        TrainingDivergedError: after training, where the monitored metric is never finite.
    """
    output = output or Output.to_screen()
    if _is_complete(config, folder, output):
        return RunResult(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with run_folder.locked(folder, "another process trains in it; wait for it or stop it"):
        if _is_complete(config, folder, output):  # by the process that held the lock until now
            return RunResult(folder)
        run_folder.write_config(folder, config.redacted())  # first, so that whatever is interrupted can resume
        run_folder.write_owner(folder)
        try:
            if config.init == "source":
                ensure_source_weights(config, output)
            _run_tracked(config, folder, output)
        except Stopped:
            if output.report_is_shown and config.strategy["name"] != SOURCE_RUN:
                output.report.print(
                    f"interrupted: {argument('resume', folder)} continues it", soft_wrap=True, markup=False
                )
            raise
        (folder / run_folder.LOCK).unlink(missing_ok=True)  # whoever comes now finds a complete run
    return RunResult(folder)


def _is_complete(config: Config, folder: Path, output: Output) -> bool:
    """Returns whether a folder holds the result already, and then ends what a kill after it left undone.

    Raises:
        UsageError: where it is the result of another configuration.
    """
    if not run_folder.is_complete(folder):
        return False
    if run_folder.read_metrics(folder)["config_hash"] != config.hash:
        raise UsageError(f"{folder}: holds the result of another configuration; give another folder (hydra.run.dir=)")
    output.report.print(f"{folder}: already complete", soft_wrap=True, markup=False)
    close_complete(config, folder)
    (folder / run_folder.LAST_CHECKPOINT).unlink(missing_ok=True)
    return True


def _run_tracked(config: Config, folder: Path, output: Output) -> None:
    """Trains, tests and records one run, in this process or in several."""
    with track_run(config, folder) as mlflow_run:
        ranks = count_ranks(config.trainer)
        if ranks == 1:
            train(config, folder, mlflow_run, output)
        else:
            validate(config)  # a mistake is one line here, seconds before the ranks would say it
            run_ranks(folder, ranks, mlflow_run.run_id, config.tracking.uri)


def prepare(config: Config) -> None:
    """Does all that a run does before it trains, without training the source: for its mistakes.

    Raises:
        UsageError: for a mistake in `config`.
    """
    if config.init != "source" or run_folder.is_complete(source_folder(config)):
        build(config).data.materialize()
        return
    validate_terms(config, build_terms(config))
    # Left out is what may need what only the source's run brings, its output layer.
    data = replace(config.data, unlabelled=False)
    components = build(replace(config, init=config.pretrain.init, head_init="new", terms={}, data=data))
    components.data.materialize()
    if config.head_init == "source":
        target, source = components.data.domains["target"], read_domain(config, "source")
        if problem := difference(target.samples.classes, source.samples.classes):
            raise UsageError(
                f"head_init=source: source and target have different classes: {problem}; use head_init=new"
            )


def ensure_source_weights(config: Config, output: Output) -> None:
    """Trains the backbone on the source unless that is done; of several processes one trains and others wait.

    Raises:
        UsageError: for a mistake in `config`, before minutes are spent on what it starts from.
    """
    folder = source_folder(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if run_folder.is_complete(folder):
        return
    prepare(config)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not run_folder.is_complete(folder):
            source = config.source_task()
            output.screen.print(f"init=source: training the backbone on {source.data.target['name']}")
            # It belongs to no sweep, since all of them share it.
            tracking = replace(config.tracking, parent=None, run_name=None)
            run(replace(source, tracking=tracking), folder, output)
