"""Compilation, memory layout and half precision change how a run computes, not what its checkpoints are."""

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from tests.helpers import BACKBONES, RESUMABLE, compose, each_once, fit, interrupted_and_not
from tlexp import run_folder
from tlexp.errors import UsageError
from tlexp.runs.build import build
from tlexp.runs.trainer import apply_model_options, make_trainer
from tlexp.runs.trainer_options import validate_trainer

FEW = ("data.target.classes=[0,1,2]", "data.source.classes=[0,1,2]", "data.test_fraction=0.9", "batch_size=5")
JOINT = ("init=random", "alpha=0.5", "epochs=2", "lr=0.001", *FEW)


@pytest.mark.parametrize(
    ("backbone", "option"),
    each_once(("timm_resnet", "timm_vit", "bert"), ("trainer.channels_last=true", "trainer.precision=bf16-mixed")),
)
def test_layout_and_precision_keep_names_and_types(run_job, backbone, option):
    run = (*BACKBONES[backbone], *JOINT, "norm=per_domain")
    plain, other = (run_job(*run, *more) for more in ((), (option,)))
    before, after = (torch.load(result["checkpoint"], weights_only=True) for result in (plain, other))
    assert before["state_dict"].keys() == after["state_dict"].keys()
    assert all(a.dtype == after["state_dict"][name].dtype for name, a in before["state_dict"].items())
    assert other["train/target/loss"] == pytest.approx(plain["train/target/loss"], rel=0.1)
    restored = run_job(*run, f"init={other['checkpoint']}", "strategy=linear_probe", "head=one")
    assert restored["weights"].count("missing") == 0


def test_images_are_laid_out_as_asked():
    components = build(compose(*BACKBONES["timm_resnet"], *JOINT, "trainer.channels_last=true"))
    model = components.task.model
    apply_model_options(model, {"channels_last": True})
    seen = []
    model.backbone.body.conv1[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.randn(2, 3, 32, 32))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert model.backbone.body.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, about how it compiles
def test_a_compiled_backbone_learns_the_same_and_leaves_no_prefix(run_job):
    """With BatchNorm by domain, whose statistics are exchanged around the compiled part."""
    # Plain SGD: Adam would turn the last digit of a vanishing gradient into a whole step.
    run = (*BACKBONES["small_cnn_batchnorm"], *JOINT, "backbone.dropout=0", "optimizer=sgd", "lr=0.05")
    plain, compiled = run_job(*run), run_job(*run, "trainer.compile=true")
    before, after = (torch.load(result["checkpoint"], weights_only=True)["state_dict"] for result in (plain, compiled))
    assert before.keys() == after.keys()
    assert not [name for name in after if "_orig_mod" in name]
    for name, tensor in before.items():
        assert torch.allclose(tensor, after[name], atol=1e-4), name


def test_features_of_a_frozen_backbone_may_be_in_half_precision(run_job):
    result = run_job(
        *BACKBONES["timm_resnet"], *JOINT, "strategy=linear_probe", "head=one", "trainer.precision=bf16-true"
    )
    single = run_job(*BACKBONES["timm_resnet"], *JOINT, "strategy=linear_probe", "head=one")
    assert result["test/target/nll"] == pytest.approx(single["test/target/nll"], rel=0.05)
    assert result["test/target/nll"] != single["test/target/nll"]


def test_options_are_off_by_default():
    components, trainer = fit(compose(*JOINT))
    assert trainer.precision == "32-true"
    weight = components.task.model.backbone.stem[0].weight
    assert weight.is_contiguous()
    assert components.task.model.backbone._compiled_call_impl is None


def test_what_a_cluster_says_of_its_tasks_does_not_matter_to_one_process(run_job, monkeypatch):
    """In an interactive shell of Slurm, Lightning would refuse or wait for tasks that never come."""
    for name, value in (("SLURM_NTASKS", "2"), ("SLURM_JOB_NAME", "x"), ("SLURM_JOB_ID", "1"), ("SLURM_PROCID", "1")):
        monkeypatch.setenv(name, value)
    assert run_job("init=random", "epochs=1")["epochs_run"] == 1


def test_a_logger_of_the_users_gets_every_metric_of_the_history(run_job, tmp_path):
    """Lightning's own CSV logger, which writes to the run's folder."""
    result = run_job(*JOINT, "+trainer.logger={_target_: pytorch_lightning.loggers.CSVLogger, name: mine}")
    (file,) = result["folder"].rglob("metrics.csv")
    rows = pd.read_csv(file).groupby("epoch").first().dropna(subset="val/target/nll")  # the test is in a row of its own
    history = run_folder.read_history(result["folder"])
    assert len(rows) == len(history) == 2
    for row in history:
        for name in ("train/target/loss", "train/source/accuracy", "val/target/nll", "val/source/ece"):
            assert rows[name][row["epoch"]] == pytest.approx(row[name], abs=1e-6)


def test_loggers_do_not_change_the_hash():
    assert compose("+trainer.logger={_target_: pytorch_lightning.loggers.CSVLogger}").hash == compose().hash


def test_a_logger_that_cannot_be_built_is_one_line(tmp_path):
    config = compose(*JOINT, "+trainer.logger={_target_: pytorch_lightning.loggers.NoLogger}")
    with pytest.raises(UsageError, match=r"trainer.logger: cannot build pytorch_lightning\.loggers\.NoLogger"):
        make_trainer(config, tmp_path, [], [])


class Counter(pl.Callback):
    """A callback of the user's own, with a state."""

    def __init__(self, start=0):
        self.steps = start

    def on_train_batch_end(self, trainer, task, *args):
        self.steps += 1
        task.log("mine/steps", float(self.steps), on_step=False, on_epoch=True, batch_size=1)

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_callbacks_of_the_users_take_part_and_go_on_after_a_kill(tmp_path, monkeypatch):
    monitor = "{_target_: pytorch_lightning.callbacks.LearningRateMonitor}"
    options = f"+trainer.callbacks=[{{_target_: {__name__}.Counter, start: 10}},{monitor}]"
    config = compose(*RESUMABLE, "epochs=3", options, root=tmp_path)
    straight, broken = interrupted_and_not(config, tmp_path, monkeypatch)
    for folder in (straight, broken):
        (first, *_, last) = run_folder.read_history(folder)
        assert last["mine/steps"] > first["mine/steps"] > 10
    assert run_folder.read_history(straight) == run_folder.read_history(broken)


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("fast_dev_run=true", "trainer.fast_dev_run=True: leaves out .*; use epochs=1 trainer.limit_train_batches=1"),
        ("overfit_batches=3", "trainer.overfit_batches=3: would validate on what is trained; use data.shots=2"),
        ("barebones=true", "trainer.barebones=True: leaves out checkpoints and logging"),
        ("enable_checkpointing=false", "trainer.enable_checkpointing=False: a run is tested by its best checkpoint"),
        ("default_root_dir=x", "trainer.default_root_dir=x: is the run's folder; use hydra.run.dir="),
        (
            "gradient_clip=1",
            r"trainer.gradient_clip: Lightning's Trainer has no such argument; did you mean .*_clip_val",
        ),
        (
            "devices=[0]",
            r"trainer.devices=\[0\]: numbers of GPUs, but a CPU has none; use trainer.devices=1 for as many",
        ),
        ("callbacks=true", "trainer.callbacks=True: give a list of nodes such as"),
        ("callbacks={_target_: no.such.Thing}", "trainer.callbacks: cannot import no.such.Thing"),
        (
            "callbacks={_target_: pytorch_lightning.callbacks.StochasticWeightAveraging}",
            ".* against the run; use ema=0",
        ),
        ("callbacks=[{_target_: pytorch_lightning.callbacks.RichProgressBar}]", ".*; use trainer.enable_progress_bar="),
    ],
)
def test_what_the_trainer_may_not_be_told_has_a_reason_and_another_way(option, line):
    with pytest.raises(UsageError, match=line):
        validate_trainer(compose(f"++trainer.{option}"))


@pytest.mark.parametrize(
    ("callbacks", "line"),
    [
        (
            "[{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/target/nll},"
            "{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/target/nll}]",
            "EarlyStopping: the run",
        ),
        (f"[{{_target_: {__name__}.NoCallback}}]", "NoCallback is no callback of Lightning; leave it out"),
        (
            f"[{{_target_: {__name__}.Counter}},{{_target_: {__name__}.Counter}}]",
            "Counter: the run has one",
        ),
    ],
)
def test_callbacks_that_would_end_in_the_middle_of_training_are_refused_before(callbacks, line, run_job):
    with pytest.raises(UsageError, match=line):
        run_job(*JOINT, "patience=3", f"+trainer.callbacks={callbacks}")


class NoCallback:
    """Not what it is given as."""


def make_counter():
    return Counter(5)


class Norm(pl.Callback):
    """Logs within an epoch, as users log gradients."""

    def on_before_optimizer_step(self, trainer, task, optimizer):
        task.log("train/grad_norm", 1.0, batch_size=1)


def test_what_a_callback_logs_within_an_epoch_is_added_to_its_row(run_job):
    function = f"{{_target_: {__name__}.make_counter}}"
    options = f"+trainer.callbacks=[{{_target_: {__name__}.Norm}},{function}]"
    plain = run_folder.read_history(run_job(*JOINT, "trainer=default")["folder"])
    logged = run_folder.read_history(run_job(*JOINT, options, "++trainer.log_every_n_steps=1")["folder"])
    for ours, theirs in zip(logged, plain, strict=True):
        assert ours["train/grad_norm"] == 1.0
        assert {name: ours[name] for name in theirs} == theirs


def test_a_run_with_a_checkpoint_of_the_users_can_be_resumed(tmp_path, monkeypatch):
    monitor = "{_target_: pytorch_lightning.callbacks.ModelCheckpoint, monitor: val/target/accuracy, mode: max}"
    config = compose(*RESUMABLE, "epochs=3", f"+trainer.callbacks=[{monitor}]", root=tmp_path)
    straight, broken = interrupted_and_not(config, tmp_path, monkeypatch)
    assert run_folder.read_history(straight) == run_folder.read_history(broken)


def test_a_list_of_devices_is_for_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    validate_trainer(compose("++trainer.devices=[0]", "trainer.accelerator=auto"))
    with pytest.raises(UsageError, match="a CPU has none"):
        validate_trainer(compose("++trainer.devices=[0]", "trainer.accelerator=cpu"))
