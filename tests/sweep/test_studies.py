"""The studies and search spaces that come along: each is planned as a command would, and its points are checked."""

from pathlib import Path
from typing import Any

import hydra
import optuna
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from tests.conftest import CACHE, CONF, STRATEGIES
from tests.test_recipes import STUDIES
from tlexp.assemble import build
from tlexp.sweep.checks import check_declared, check_early
from tlexp.sweep.points import combinations, parsed, point
from tlexp.sweep.search import distribution, written

JOBS = {"alpha_curve": 140, "backbone_heatmap": 80, "label_efficiency": 75, "strategy_shootout": 100}
ATTENTION = ("lora", "peft")  # need layers named where there is none


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reads an experiment's sweep: loader, the composed multirun, and its question."""
    monkeypatch.chdir(tmp_path)

    def opened(*arguments: str) -> tuple[Any, Any, Any]:
        loader = GlobalHydra.instance().config_loader()
        given = [*arguments, "tracking=none", f"cache={CACHE}"]
        master = loader.load_configuration("config", given, RunMode.MULTIRUN)
        master.hydra.job.config_name = "config"
        params = OmegaConf.to_container(master.hydra.sweeper.params)
        assert master.hydra.mode == RunMode.MULTIRUN
        assert isinstance(params, dict)
        return loader, master, parsed(loader, params, given)

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield opened


@pytest.mark.parametrize("study", STUDIES)
def test_every_point_of_a_study_can_run(study, opened):
    loader, master, question = opened(f"experiment={study}")
    asked = combinations(question.axes)
    assert len(asked) == JOBS[study]
    # One repetition of each configuration, since they differ in the seed alone.
    first = [values for values in asked if values["seed"] == "0"]
    points = [point(loader, master, question, values) for values in first]
    assert len({each.key for each in points}) == len(points)
    assert all(each.config.data.draw == each.config.seed for each in points)
    check_early(points)
    check_declared(points[0].config, question)
    assert points[0].config.sweep.baseline == "strategy=scratch"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_has_a_space_to_search(strategy, opened):
    """Random values of it compose to configurations that the strategy takes; all spaces have as many trials."""
    loader, master, question = opened(f"experiment=tune_{strategy}")
    searched = [axis for axis in question.axes if not axis.repeats]
    (repeated,) = [axis for axis in question.axes if axis.repeats]
    assert repeated.values == ("0", "1", "2")
    assert (master.sweep.trials, master.sweep.name) == (20, f"tune_{strategy}")
    space = {axis.name: distribution(axis) for axis in searched}
    assert {"lr", "alpha"} <= set(space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(3):
        params = study.ask(space).params
        values = {axis.key: written(params[axis.name]) for axis in searched}
        found = point(loader, master, question, {**values, "seed": "0"})
        assert found.config.strategy["name"] == strategy
        build("strategy", found.config.strategy)


def test_a_float_is_written_so_that_it_is_read_back_the_same(opened):
    value = 0.1 + 0.2
    assert float(written(value)) == value
    assert written("0") == "0"
    assert written(3) == "3"


def test_spaces_are_intervals_ranges_or_choices(opened):
    arguments = (
        "lr=tag(log,interval(0.001,0.1))",
        "epochs=int(interval(1,9))",
        "batch_size=range(8,33,8)",
        "alpha=0,0.5,inf",
    )
    _, _, question = opened("experiment=tune", *arguments)
    space = {axis.name: distribution(axis) for axis in question.axes if not axis.repeats}
    assert space == {
        "lr": optuna.distributions.FloatDistribution(0.001, 0.1, log=True),
        "epochs": optuna.distributions.IntDistribution(1, 9),
        "batch_size": optuna.distributions.IntDistribution(8, 32, step=8),
        "alpha": optuna.distributions.CategoricalDistribution(("0", "0.5", "inf")),
    }
