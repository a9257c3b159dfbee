"""The sweeps and search spaces that come along: point is planned as a command would, and its points are checked."""

from pathlib import Path
from typing import Any

import hydra
import optuna
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from tests.helpers import CACHE, STRATEGIES, SWEEPS
from tlexp.config.instantiate import build as instantiate
from tlexp.config.load import CONF
from tlexp.sweeps.points import Composer, combinations, parse_overrides
from tlexp.sweeps.search import as_override, distribution
from tlexp.sweeps.validation import validate_jobs, validate_spec

JOBS = {"alpha_curve": 140, "backbone_heatmap": 80, "label_efficiency": 75, "strategy_shootout": 100}
ATTENTION = ("lora", "peft")  # need layers named where there is none


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reads an experiment's sweep as the sweeper does: the composed multirun, and a composer of its points."""
    monkeypatch.chdir(tmp_path)

    def opened(*arguments: str) -> tuple[Any, Composer]:
        loader = GlobalHydra.instance().config_loader()
        given = [*arguments, "tracking=none", f"cache={CACHE}"]
        master = loader.load_configuration("config", given, RunMode.MULTIRUN)
        master.hydra.job.config_name = "config"
        params = OmegaConf.to_container(master.hydra.sweeper.params)
        assert master.hydra.mode == RunMode.MULTIRUN
        assert isinstance(params, dict)
        return master, Composer(loader, master, parse_overrides(loader, params, given))

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield opened


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_point_of_a_sweep_can_run(sweep, opened):
    _, composer = opened(f"experiment={sweep}")
    grid = combinations(composer.spec.axes)
    assert len(grid) == JOBS[sweep]
    # One repetition of point configuration, since they differ in the seed alone.
    first = [values for values in grid if values["seed"] == "0"]
    points = [composer.point(values) for values in first]
    assert len({point.key for point in points}) == len(points)
    assert all(point.config.data.draw == point.config.seed for point in points)
    validate_jobs(points)
    validate_spec(points[0].config, composer.spec)
    assert points[0].config.sweep.baseline == "strategy=scratch"


@pytest.mark.parametrize("strategy", sorted({*STRATEGIES} - {"zero_shot", "nearest_mean"}))  # which have no options
def test_every_strategy_has_a_space_to_search(strategy, opened):
    """Random values of it compose to configurations that the strategy takes; all spaces have as many trials."""
    master, composer = opened(f"experiment=tune_{strategy}")
    searched = [axis for axis in composer.spec.axes if not axis.is_replicate]
    (repeated,) = [axis for axis in composer.spec.axes if axis.is_replicate]
    assert repeated.values == ("0", "1", "2")
    assert (master.sweep.trials, master.sweep.name) == (20, f"tune_{strategy}")
    space = {axis.name: distribution(axis) for axis in searched}
    assert {"lr", "alpha"} <= set(space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(3):
        params = study.ask(space).params
        values = {axis.key: as_override(params[axis.name]) for axis in searched}
        config = composer.point({**values, "seed": "0"}).config
        assert config.strategy["name"] == strategy
        instantiate("strategy", config.strategy)


def test_a_float_is_written_so_that_it_is_read_back_the_same(opened):
    value = 0.1 + 0.2
    assert float(as_override(value)) == value
    assert as_override("0") == "0"
    assert as_override(3) == "3"


def test_spaces_are_intervals_ranges_or_choices(opened):
    arguments = (
        "lr=tag(log,interval(0.001,0.1))",
        "epochs=int(interval(1,9))",
        "batch_size=range(8,33,8)",
        "alpha=0,0.5,inf",
    )
    _, composer = opened("experiment=tune", *arguments)
    space = {axis.name: distribution(axis) for axis in composer.spec.axes if not axis.is_replicate}
    assert space == {
        "lr": optuna.distributions.FloatDistribution(0.001, 0.1, log=True),
        "epochs": optuna.distributions.IntDistribution(1, 9),
        "batch_size": optuna.distributions.IntDistribution(8, 32, step=8),
        "alpha": optuna.distributions.CategoricalDistribution(("0", "0.5", "inf")),
    }
