"""Compilation, memory layout and half precision change how a run computes, not what its checkpoints are."""

import pandas as pd
import pytest
import torch

from tests.helpers import BACKBONES, compose, each_once, fit
from tlexp import run_folder
from tlexp.errors import UsageError
from tlexp.runs.build import build
from tlexp.runs.trainer import apply_model_options, make_trainer

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
