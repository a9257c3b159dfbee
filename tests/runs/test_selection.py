"""Choosing the number of epochs by folds of few labels, and the training on all of them that follows."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from tests.helpers import (
    BACKBONES,
    QUICK,
    STRATEGIES,
    best_weights,
    compose,
    differing,
    fit_components,
    forked,
    options_of,
    state,
    untimed_result,
)
from tlexp import run_folder
from tlexp.comparison.predictions import calibration, read_predictions
from tlexp.data.splits import split
from tlexp.errors import UsageError
from tlexp.runs.build import build
from tlexp.runs.resume import LastCheckpoint
from tlexp.runs.run import run as run_config
from tlexp.runs.selection import StopAfterEpoch

CV = ("data.val=cv", "init=random", "epochs=4", "lr=0.003", "strategy=full_transfer")
LABELS = np.repeat(np.arange(4), 30)


def test_folds_hold_out_every_label_once_and_are_stratified():
    made = split(LABELS, 0, 0.4, shots=5, val="cv")
    assert len(made.train) == 20
    assert len(made.val) == 0
    assert sorted(np.concatenate(made.folds)) == made.train.tolist()
    for number, held_out in enumerate(made.folds):
        assert np.bincount(LABELS[held_out]).tolist() == [1] * 4
        fold = made.fold(number)
        assert set(fold.train) | set(fold.val) == set(made.train)
        assert not set(fold.train) & set(fold.val)
        assert fold.test is made.test


def test_folds_buy_the_labels_that_a_held_out_split_buys_and_are_nested():
    held_out, made = (split(LABELS, 0, 0.4, shots=5, val=val) for val in ("in_budget", "cv"))
    assert held_out.merged().train.tolist() == made.train.tolist()
    assert held_out.test.tolist() == made.test.tolist()
    assert made.folds[1].tolist() == held_out.val.tolist()
    larger = split(LABELS, 0, 0.4, shots=10, val="cv")
    assert all(set(few) < set(many) for few, many in zip(made.folds, larger.folds, strict=True))
    assert len(split(LABELS, 0, 0.4, shots=3, val="cv").folds) == 3
    whole = split(LABELS, 0, 0.4, val="cv")
    assert len(whole.train) == 72
    assert len(whole.folds) == 5


def test_groups_stay_whole_and_given_splits_are_kept():
    groups = np.arange(120) // 3
    made = split(LABELS, 0, 0.4, val="cv", groups=groups)
    for number in range(len(made.folds)):
        fold = made.fold(number)
        assert not set(groups[fold.train]) & set(groups[fold.val])
    given = {"train": np.arange(0, 120, 2), "test": np.arange(1, 120, 4), "val": np.arange(3, 120, 4)}
    made = split(LABELS, 0, 0.4, val="cv", given=given)
    assert made.test.tolist() == given["test"].tolist()
    assert sorted(np.concatenate(made.folds)) == sorted([*given["train"], *given["val"]])


def test_groups_that_no_folds_can_divide_are_said_before_any_fold():
    groups = np.concatenate([np.arange(90) // 3, np.full(30, 90)])  # all of the last class is one group
    with pytest.raises(UsageError, match=r"data.val=cv: a class has a single group, and folds need two"):
        split(LABELS, 0, 0.4, val="cv", groups=groups, given={"train": np.arange(120), "test": np.arange(0)})


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("data.shots=1",), "data.shots=1: at least 2 labels a class"),
        (("patience=3",), "patience=3: would stop folds after different epochs; leave it out"),
        (("data.refit=false",), "data.refit=False: folds leave no model to test"),
        (("data.val=large", "data.refit=true"), "data.refit=True: would train on labels that the budget does not have"),
        (("data.fraction=0.001", "data.shots=null"), "data.val=cv: a class has a single label, and folds need two"),
        (("+trainer.limit_val_batches=1",), "trainer.limit_val_batches=1: held-out labels choose the number of epochs"),
    ],
)
def test_what_cannot_be_folded_is_one_line(options, line):
    with pytest.raises(UsageError, match=line):
        build(compose("data.val=cv", "init=random", *options))


@pytest.mark.figures
def test_the_score_is_that_of_all_labels_and_one_epoch(run_job):
    result = run_job(*CV)
    pooled = read_predictions(result["folder"], split="val")
    assert len(pooled.ids) == len(set(pooled.ids)) == result["val_examples"] == result["labels"] == 50
    assert result["folds"] == 5
    assert result["score"] == result["val/target/nll"] == pytest.approx(calibration(pooled)["nll"], abs=1e-3)
    p = torch.from_numpy(pooled.logits).softmax(1).numpy()
    assert result["score"] == pytest.approx(log_loss(pooled.labels, p), abs=1e-3)
    history = run_folder.read_history(result["folder"])
    curve = {row["epoch"]: row["val/target/nll"] for row in history}
    assert len(curve) == 4
    assert result["best_epoch"] == min(curve, key=curve.__getitem__)
    assert result["data"]["target"]["train"] == 50
    assert result["test/target/accuracy"] == pytest.approx(read_predictions(result["folder"]).correct.mean(), abs=2e-3)
    # Five times 40 examples for four epochs, and all 50 for as many as were chosen.
    assert result["training_examples"] == 5 * 4 * 40 + 50 * (result["best_epoch"] + 1)
    assert not (result["folder"] / "parts").exists()


def test_the_final_training_is_that_on_all_labels_on_the_same_schedule(run_job):
    result = run_job(*CV, "choose_from=all")
    config = compose(*CV)
    components = build(config, part="all")
    trainer = fit_components(config, components, StopAfterEpoch(result["best_epoch"]), validates=False)
    weights = best_weights(result["folder"])
    ours = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
    assert not differing(ours, state(components.task.model))
    assert trainer.global_step == (result["best_epoch"] + 1) * components.data.steps


def test_a_held_out_split_can_be_trained_on_too_in_the_end(run_job):
    plain, refitted = (run_job(*CV, "data.val=in_budget", f"data.refit={refit}") for refit in ("false", "true"))
    for name in ("score", "best_epoch", "val/target/accuracy"):
        assert refitted[name] == pytest.approx(plain[name], abs=1e-3)
    assert (plain["data"]["target"]["train"], refitted["data"]["target"]["train"]) == (40, 50)
    assert refitted["folds"] == 1
    assert refitted["test/target/nll"] != plain["test/target/nll"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_is_chosen_by_folds(run_job, strategy):
    """Those with phases, with averages, on features that are computed once, and those that solve a head."""
    options = options_of(strategy)
    few = ("data.target.classes=[0,1,2]", "data.source.classes=[0,1,2]", "data.test_fraction=0.9", "batch_size=6")
    run = (*few, "data.val=cv", "data.shots=3", "init=random", "epochs=2", "alpha=0", f"strategy={strategy}")
    result = run_job(*run, *options, "ema=0.9" if strategy == "finetune" else "ema=null")
    assert result["folds"] == 3
    assert result["val_examples"] == 9
    assert result["best_epoch"] >= min(result["last_phase"], 1)


@pytest.mark.parametrize("stopped", [2, 5])
def test_it_goes_on_in_the_fold_in_which_it_was_stopped(tmp_path, monkeypatch, stopped):
    """In the third fold's second epoch, and in the final training's first."""
    run = (*CV, *BACKBONES["small_cnn_batchnorm"], "data.shots=5", "checkpoint_minutes=0", "choose_from=all")
    config = compose(*run, root=tmp_path)
    run_config(config, tmp_path / "straight")
    original, fits = LastCheckpoint.on_train_epoch_end, []

    def stop(self, trainer, task):
        original(self, trainer, task)
        fits.extend([id(trainer)] if id(trainer) not in fits else [])
        if len(fits) == stopped + 1 and trainer.current_epoch + 1 == (2 if stopped < 5 else 1):
            raise RuntimeError("the power went out")

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_epoch_end", stop)
        with pytest.raises(RuntimeError, match="the power went out"):
            run_config(config, tmp_path / "broken")
    done = sorted(path.name for path in (tmp_path / "broken/parts").glob("*.pt"))
    assert done == [f"{number}.pt" for number in range(stopped)]
    run_config(config, tmp_path / "broken")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert untimed_result(straight) == untimed_result(broken)
    assert not differing(best_weights(straight), best_weights(broken))


def test_parts_of_another_configuration_are_trained_again(tmp_path, monkeypatch):
    """A folder that a killed command left, and a command that asks for something else."""
    original = LastCheckpoint.on_train_epoch_end

    def stop(self, trainer, task):
        original(self, trainer, task)
        if "parts/1" in str(self.file):
            raise RuntimeError("the power went out")

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_epoch_end", stop)
        with pytest.raises(RuntimeError, match="the power went out"):
            run_config(compose(*CV, root=tmp_path), tmp_path / "run")
    other = compose(*CV, "lr=0.001", root=tmp_path)
    for folder in ("run", "fresh"):
        run_config(other, tmp_path / folder)
    assert untimed_result(tmp_path / "run") == untimed_result(tmp_path / "fresh")


def test_a_final_training_that_time_cuts_short_is_no_result(run_job, monkeypatch):
    monkeypatch.setattr(StopAfterEpoch, "on_train_epoch_end", lambda self, trainer, task: None)
    original = LastCheckpoint.on_train_epoch_end

    def end(self, trainer, task):
        original(self, trainer, task)
        trainer.should_stop = trainer.should_stop or "parts" not in str(self.file)

    monkeypatch.setattr(LastCheckpoint, "on_train_epoch_end", end)
    with pytest.raises(UsageError, match=r"ended before epoch \d, which validation has chosen; give it more"):
        run_job(*CV)


@pytest.mark.slow
def test_processes_choose_as_one_does(tmp_path):
    results = []
    for trainer in ("default", "ddp"):
        folder = tmp_path / trainer
        run = (*QUICK, *CV, "tracking=none", "optimizer=sgd", "backbone.dropout=0", f"trainer={trainer}")
        done = forked(*run, f"hydra.run.dir={folder}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        results.append(run_folder.read_metrics(folder))
        assert done.stdout.count("fold 3 of 5") == done.stdout.count("training on all labels") == 1, (
            "one of them reports"
        )
    one, two = results
    for name in ("score", "best_epoch", "folds", "val_examples", "training_examples", "test/target/nll"):
        assert two[name] == pytest.approx(one[name], rel=1e-3), name
