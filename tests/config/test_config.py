import sys

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from tests.helpers import ROOT, STRATEGIES, compose
from tlexp.error_lines import one_line
from tlexp.errors import UsageError
from tlexp.fingerprint import content_key
from tlexp.runs.build import build
from tlexp.runs.trainer import make_trainer
from tlexp.runs.validation import validate_monitor
from tlexp.strategies.heads_only import HeadsOnly

# What is typed, and what the one line must hold.
WRONG = [
    (("alpha=-1",), "alpha=-1.0: must be finite and >= 0, or inf"),
    (("alpha=nan",), "alpha=nan: must be"),
    (("alpha=lots",), "'lots' of type 'str' could not be converted to Float"),
    (("head_hidden=-1",), "head_hidden=-1: units of a hidden layer, or 0"),
    (("head_dropout=1",), "head_dropout=1.0: must lie in"),
    (("pretrain.init=source",), "pretrain.init=source: the source's own run starts from"),
    (("experiment=vgg16_keras", "init=random"), "root=null: an image folder needs data.target.root=FOLDER"),
    (("data=text_table", "init=random"), "root=null: a text table needs data.target.root=FILE"),
    (("backbone=timm", "init=random", "backbone.size=abc"), "backbone.size=abc: must be at least 1, in whole pixels"),
    (("backbone=vgg16", "init=random", "backbone.size=0"), "backbone.size=0: must be at least 1, in whole pixels"),
    (("backbone=text", "init=random"), "Missing mandatory value"),
    (("epochs=0",), "epochs=0: must be a finite number above 0"),
    (("epochs=1.5",), "could not be converted to Integer"),
    (("lr=-0.1",), "lr=-0.1: must be a finite number above 0"),
    (("patience=0",), "patience=0: must be"),
    (("pretrain.lr=0",), "pretrain.lr=0.0: must be"),
    (("head=three",), "head=three: choose one of auto, one, two"),
    (("norm=layer",), "norm=layer: choose one of per_domain, per_domain_affine"),
    (("objective.form=product",), "objective.form=product: choose one of sum, convex"),
    (("objective.label_smoothing=1",), "objective.label_smoothing=1.0: must lie in"),
    (("objective.class_weights=big",), "choose one of none, balanced"),
    (("data.shots=1",), "data.shots=1: at least 2 labels a class"),
    (("data.shots=null", "data.fraction=1.5"), "data.fraction=1.5: must lie in (0, 1]"),
    (("data.fraction=0.1",), "the budget is set already by data.shots=5; add data.shots=null"),
    (("data.val=all",), "data.val=all: choose one of in_budget, cv, large"),
    (("data.test_fraction=1",), "data.test_fraction=1.0: must lie between"),
    (("data.source=null", "init=random", "alpha=1"), "alpha=1.0: data=mnist_to_digits has no source"),
    (("data.source=null", "init=source"), "init=source: data=mnist_to_digits has no source"),
    (("tracking=mlflow", "tracking.uri=./mlruns"), "MLflow keeps no runs in plain folders any more; use sqlite:"),
    (("tracking=mlflow", "tracking.uri=file:///tmp/mlruns"), "MLflow keeps no runs in plain folders"),
    (("tracking=mlflow", "tracking.experiment=' '"), "needs a name"),
    (("terms=[corall]",), "Could not find 'terms/corall' Available options in 'terms': bi_tuning bss cdan co_tuning"),
    (("strategy=finetun",), "Could not find 'strategy/finetun' Available options in 'strategy': bitfit closed_probe"),
    (("alhpa=1",), "Could not override 'alhpa': no such option; did you mean alpha? --help lists them"),
    (("+alhpa=1",), "Key 'alhpa' not in 'Config': no such option"),
    (("data.shotz=1",), "Could not override 'data.shotz': no such option"),
    (("init=epoch=3.ckpt",), "a value with = or other special characters needs quotes"),
    # Known only once the components are built, yet before training.
    (("strategy.backbone_lr_mult=0",), "strategy.backbone_lr_mult=0: must be a finite number above 0"),
    (("strategy.freeze_until=layer9",), "the stages of this backbone are stem, stage1, stage2, hidden"),
    (("strategy=linear_probe", "strategy.heads=none"), "strategy.heads=none: choose one of target, all"),
    (("+strategy.speed=3",), "unexpected keyword argument 'speed'"),
    (("+optimizer.speed=3",), "cannot build torch.optim.AdamW: got an unexpected keyword argument 'speed'"),
    (("+schedule.speed=3",), "got an unexpected keyword argument 'speed'"),
    (("backbone.width=5",), "backbone.width=5"),
    (("strategy.unit=block",), "no such option; it is one of strategy=layer_decay; --help lists them"),
    (("backbone.norm=layer",), "backbone.norm=layer: choose one of group, batch"),
    (
        ("data=digits_to_mnist", "data.shots=null", "batch_size=1000", "alpha=1", "init=random"),
        "batch_size=1000: the source digits has only ",
    ),
    (
        ("monitor=val/acc",),
        "monitor=val/acc: no such metric; this run has val/target/accuracy, val/target/balanced_acc",
    ),
    (("monitor=val/source/nll",), "monitor=val/source/nll: no such metric"),
    (("init=nowhere.ckpt",), "init=nowhere.ckpt: neither source, random, pretrained nor an existing file"),
    (("init=pretrained",), "backbone=small_cnn has no published weights"),
    (("head=one", "alpha=1", "data.source.classes=[0,1]"), "head=one: source and target have different classes"),
    (("head=two", "alpha=inf"), "alpha=inf: trains the source's head only"),
    (("strategy=linear_probe", "head=two", "alpha=0.5"), "with a frozen backbone and two heads it cannot reach"),
    (("strategy=shared_representation", "head=two", "alpha=0.5"), "or objective.allow_inert_alpha=true"),
    (("trainer.speed=3",), "trainer.speed: Lightning's Trainer has no such argument"),
    (("trainer.callbacks=[3]",), "trainer.callbacks=3: give a list of nodes such as {_target_: pytorch_lightning."),
    (("trainer.devices=many",), "trainer.devices=many: give a number above 0"),
    (("trainer=ddp", "batch_size=1"), "the smallest batch of the target has 1 examples for 2 processes"),
    (("trainer.devices=11",), "the target has only 10 val examples, one for each process at least"),
    (("trainer.accelerator=warp",), "trainer: Lightning refuses its options"),
    (("trainer.precision=17",), "trainer: Lightning refuses its options"),
    (("trainer.precision=16-true",), "trainer.precision=16-true: the optimizer's steps underflow"),
    (("trainer.max_epochs=-1",), "trainer.max_epochs=-1: schedule and strategy need a number above 0"),
    (("trainer.limit_val_batches=0",), "trainer.limit_val_batches=0: leaves nothing"),
    (("epochs=2", "trainer.check_val_every_n_epoch=3"), "2 epochs end before it"),
    (("trainer.overfit_batches=2",), "trainer.overfit_batches=2: would validate on what is trained; use data.shots=2"),
    (("optimizer.weight_decay=-1",), "torch.optim.AdamW refuses its options: Invalid weight_decay value"),
    (("schedule.warmup=10",), "schedule.warmup=10: must be a fraction of all steps in [0, 1)"),
    (("data.shots=500",), "data.shots=500: a class has only"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG, ids=[" ".join(overrides) for overrides, _ in WRONG])
def test_a_wrong_value_is_one_line_with_value_rule_and_remedy(overrides, message):
    with pytest.raises((UsageError, HydraException, OmegaConfBaseException)) as caught:
        build_all(*overrides)
    line = one_line(caught.value)
    assert message in line
    assert "\n" not in line


def build_all(*overrides):
    config = compose("init=random", *overrides)
    build(config)
    make_trainer(config, ROOT, [], [])


def test_a_strategy_that_freezes_everything_is_refused(monkeypatch):
    monkeypatch.setattr(HeadsOnly, "trainable", lambda self, epoch: set())
    with pytest.raises(UsageError, match="strategy=linear_probe: freezes every stage, so nothing trains"):
        build(compose("init=random", "strategy=linear_probe"))


def test_an_absent_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "needs_text.py").write_text("import transformers\n\nclass Encoder: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = compose("init=random", "backbone={_target_: needs_text.Encoder, name: bert}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"backbone=bert: needs the package transformers; pip install 'tlexp\[text\]'"):
        build(config)


def test_an_inert_alpha_can_be_allowed():
    options = ("init=random", "strategy=shared_representation", "head=two", "alpha=0.5")
    components = build(compose(*options, "objective.allow_inert_alpha=true"))
    assert "alpha reaches the source's head only: the target's result is that of alpha=0" in components.notices


def test_sgd_with_the_form_sum_says_that_alpha_scales_the_rate():
    notices = {
        form: build(compose("init=random", "optimizer=sgd", "alpha=0.5", f"objective.form={form}")).notices
        for form in ("sum", "convex")
    }
    assert "alpha also scales the learning rate" in notices["sum"][0]
    assert notices["convex"] == ()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_composes_with_its_name_and_recipe(strategy):
    config = compose(f"strategy={strategy}")
    assert config.strategy["name"] == strategy
    assert (config.epochs, config.lr, config.init) == (config.recipe.epochs, config.recipe.lr, config.recipe.init)


def test_scratch_and_full_transfer_share_their_recipe():
    scratch, full = compose("strategy=scratch").recipe, compose("strategy=full_transfer").recipe
    assert (scratch.epochs, scratch.lr) == (full.epochs, full.lr)
    assert (scratch.init, full.init) == ("random", "source")


def test_paths_are_resolved_once_against_the_launch_folder(tmp_path):
    (tmp_path / "weights.ckpt").write_text("")
    config = compose("tracking=mlflow", "init=weights.ckpt", root=tmp_path)
    assert config.init == str(tmp_path / "weights.ckpt")
    assert config.store == str(tmp_path / "outputs/store")
    assert config.tracking.uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_the_hash_depends_on_what_changes_the_result(tmp_path):
    same = {compose().hash, compose("tracking=mlflow").hash, compose("store=elsewhere", root=tmp_path).hash}
    assert len(same) == 1
    assert (
        len(same | {compose("alpha=0.5").hash, compose("seed=1").hash, compose("optimizer.weight_decay=0").hash}) == 4
    )


def test_options_of_the_trainer_are_in_the_hash_unless_they_only_report():
    assert compose("trainer.gradient_clip_val=0.1").hash != compose().hash
    assert compose("trainer.enable_progress_bar=true").hash == compose().hash


def test_a_content_key_does_not_depend_on_the_order_of_keys():
    assert content_key({"a": 1, "b": {"c": 2, "d": 3}}) == content_key({"b": {"d": 3, "c": 2}, "a": 1})


@pytest.mark.parametrize(("name", "mode"), [("accuracy", "max"), ("macro_f1", "max"), ("nll", "min"), ("ece", "min")])
def test_the_monitor_knows_its_direction(name, mode):
    assert validate_monitor(compose(f"monitor=val/source/{name}", "alpha=1")) == mode


def test_scratch_starts_from_random_weights_in_a_sweep_of_pretrained_ones(caplog):
    config = compose("strategy=scratch", "init=weights.pth")
    assert config.init == "random"
    assert config == compose("strategy=scratch")
    assert compose("strategy=full_transfer", "init=weights.pth").init == "weights.pth"
    assert caplog.messages == ["init=weights.pth does not apply to strategy=scratch, which starts from random weights"]
