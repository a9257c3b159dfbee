"""What a multirun asks for, and which points share a result."""

from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from PIL import Image

from tests.helpers import CACHE, QUICK, compose
from tlexp.config.load import CONF, with_trainer_options
from tlexp.errors import UsageError
from tlexp.sweeps.job_key import _data_keys, is_inert, job_key
from tlexp.sweeps.points import Composer, GridPoint, combinations, parse_overrides


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Composes the points of a command as the sweeper does."""
    monkeypatch.chdir(tmp_path)

    def plan(*arguments: str) -> list[GridPoint]:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            overrides = with_trainer_options([*QUICK, "tracking=none", f"cache={CACHE}", *arguments])
            spec = parse_overrides(loader, {}, overrides)
            master = loader.load_configuration("config", list(spec.fixed), RunMode.MULTIRUN)
            master.hydra.job.config_name = "config"
            composer = Composer(loader, master, spec)
            return [composer.point(values) for values in combinations(spec.axes)]

    return plan


def key(*overrides: str) -> str:
    return job_key(compose(*overrides))


def test_a_grid_is_every_combination_under_a_name_to_read(plan):
    points = plan("strategy=scratch,finetune", "alpha=0,0.5", "seed=range(2)")
    assert len(points) == len({point.key for point in points}) == 8
    assert points[0].values == {"strategy": "scratch", "alpha": "0", "seed": "0"}
    assert points[-1].name == "finetune-a0.5-s1"
    assert points[-1].folder == f"finetune-mnist_to_digits-a0.5-s1-small_cnn-n5-{points[-1].key}"
    (other,) = plan("lr=0.01", "epochs=3", "init=random", "terms=[l2_sp]", "data.draw=2")
    assert other.folder == f"finetune-mnist_to_digits-a0-s0-small_cnn-l2_sp-n5-d2-lr0.01-e3-initrandom-{other.key}"
    assert points[-1].config.alpha == 0.5


def test_a_reordered_or_grown_grid_finds_what_is_done(plan):
    first = {point.key for point in plan("strategy=scratch,finetune", "alpha=0,0.5")}
    assert {point.key for point in plan("alpha=0.5,0", "strategy=finetune,scratch")} == first
    assert {point.key for point in plan("strategy=scratch,finetune", "alpha=0,0.50,1")} > first


def test_the_same_sweep_has_the_same_key_whatever_its_values(plan):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()

        def key_of(*arguments: str) -> str:
            return parse_overrides(loader, {}, arguments).key

        asked = key_of("alpha=0,1", "seed=0,1", "batch_size=8")
        assert key_of("seed=0,1,2", "batch_size=8", "alpha=1,0,3") == asked
        assert key_of("alpha=0,1", "seed=0,1", "batch_size=8", "sweep.fail_fast=true", "tracking.uri=x") == asked
        assert key_of("alpha=0,1", "seed=0,1", "batch_size=16") != asked
        assert key_of("alpha=0,1", "seed=0,1", "batch_size=8", "lr=0.1,0.2") != asked


def test_any_option_of_a_sweep_can_be_given_again_also_the_trainers():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        given = with_trainer_options(["trainer.gradient_clip_val=5"])
        spec = parse_overrides(loader, {"trainer.gradient_clip_val": "0.1,1"}, given)
    assert spec.axes == ()
    assert spec.fixed == ("++trainer.gradient_clip_val=5",)


def test_the_command_line_wins_over_what_a_configuration_brings():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        spec = parse_overrides(loader, {"seed": "range(10)", "alpha": "0,1"}, ["seed=3,4", "alpha=0.5"])
    assert [(axis.name, axis.values) for axis in spec.axes] == [("seed", ("3", "4"))]
    assert spec.fixed == ("alpha=0.5",)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("strategy=scratch",), ("strategy=full_transfer", "init=random")),
        (("alpha=0",), ("alpha=0", "objective.form=convex")),
        (("alpha=0", "init=random"), ("alpha=0", "init=random", "data.source.rotation=90")),
        (("alpha=0", "init=random"), ("alpha=0", "init=random", "pretrain.lr=1")),
        (
            ("strategy=linear_probe", "alpha=0"),
            ("strategy=shared_representation", "alpha=0"),
        ),
        (("alpha=0.5",), ("alpha=0.5", "trainer.enable_progress_bar=true", "workers=2", "sweep.fail_fast=true")),
        (("alpha=0.5",), ("alpha=0.5", "tracking=mlflow", "store=elsewhere")),
    ],
)
def test_points_with_the_same_result_share_a_key(one, other):
    assert key(*one) == key(*other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("alpha=0",), ("alpha=0", "data.source.rotation=90")),  # the start is another
        (
            ("alpha=0", "init=random", "terms=[coral]"),
            ("alpha=0", "init=random", "terms=[coral]", "data.source.rotation=90"),
        ),
        (("alpha=0.1",), ("alpha=0.1", "objective.form=convex")),
        (("alpha=0.1", "init=random"), ("alpha=0.1", "init=random", "data.source.rotation=90")),
        (("seed=0",), ("seed=1",)),
        (("strategy=finetune",), ("strategy=finetune", "strategy.backbone_lr_mult=1")),
    ],
)
def test_points_with_another_result_do_not(one, other):
    assert key(*one) != key(*other)


def test_alpha_that_cannot_reach_the_target_is_run_once(plan):
    inert = ("strategy=linear_probe", "head=two")
    points = plan(*inert, "alpha=0,0.5,1")
    assert len({point.key for point in points}) == 1
    assert [point.values["alpha"] for point in points] == ["0", "0.5", "1"]
    assert {point.config.alpha for point in points} == {0.0}
    assert points[1].overrides[-1] == "alpha=0"


@pytest.mark.parametrize(
    "options",
    [
        ("strategy=linear_probe", "head=auto"),  # ten classes in both: one head
        ("strategy=finetune", "head=two"),
        ("strategy=shared_representation", "head=two", "objective.allow_inert_alpha=true"),
    ],
)
def test_alpha_that_acts_is_not_merged(options):
    assert not is_inert(compose(*options, "alpha=0.5"))


def test_heads_are_two_where_classes_differ():
    assert is_inert(compose("strategy=linear_probe", "alpha=0.5", "data.target.classes=[0,1,2]"))


def test_changed_files_are_another_job(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.png").write_bytes(b"1")
    options = ("data=images", f"data.target.root={tmp_path}/photos", "init=random")
    before = key(*options)
    (tmp_path / "photos/a/2.png").write_bytes(b"2")
    _data_keys.cache_clear()  # a sweep looks once
    assert key(*options) != before


def test_changed_pictures_of_a_table_are_another_job_and_a_download_is_none(tmp_path):
    for name in ("1", "2"):
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text(f"path,label\n{tmp_path}/1.png,a\n{tmp_path}/2.png,b\n")
    options = ("data=image_table", f"data.target.root={tmp_path}/t.csv", "init=random")
    before = key(*options)
    Image.new("L", (9, 9)).save(tmp_path / "1.png")
    _data_keys.cache_clear()
    assert key(*options) != before
    named = ("data=named", "dataset@data.target=cifar10", f"data.target.folder={tmp_path}/cifar", "init=random")
    before = key(*named)
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar/batch").write_bytes(b"1")
    _data_keys.cache_clear()
    assert key(*named) == before


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("alpha=0,-1",), "alpha=-1.0: must be finite and >= 0"),
        (("lr=interval(0.1,1)",), r"lr=interval\(0.1,1\): a grid needs values"),
        (("alpha=0,1", "sweep.baseline=scratch"), "sweep.baseline=scratch: needs an axis and its value, in quotes"),
        (("alpha=0,1", "sweep.metric=accuracy"), "sweep.metric=accuracy: choose one of test/target/accuracy"),
        (("monitor=val/target/nll,val/target/accuracy",), "monitor: decides how all jobs are compared or stored"),
        (("sweep.fail_fast=true,false",), "sweep.fail_fast: decides how all jobs are compared or stored"),
        (("alpha=0,1", "sweep.trials=0"), "sweep.trials=0: must be a finite number above 0"),
        (("alpha=0,1", "sweep.pruner={_target_: optuna.pruners.MedianPruner}"), "sweep.pruner=.*leave it null"),
    ],
)
def test_a_mistake_in_any_point_is_said_before_the_first_job(plan, arguments, error):
    with pytest.raises(UsageError, match=error):
        plan(*arguments)
