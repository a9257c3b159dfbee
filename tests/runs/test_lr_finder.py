"""What looks on leaves the run as it was: the trial for a rate, and stopping early."""

import json

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console

from tests.helpers import best_weights, compose, differing, state
from tlexp.errors import UsageError
from tlexp.runs.build import build
from tlexp.runs.lr_finder import find_lr

RUN = ("data.test_fraction=0.9", "backbone.norm=batch", "backbone.dropout=0.3", "init=random", "alpha=0.5", "epochs=3")


@pytest.mark.parametrize(
    "options", [(), ("terms=[dann]", "strategy=lp_ft", "strategy.probe_epochs=1", "augment=light", "augment.flip=0")]
)
def test_a_run_that_looked_for_its_rate_is_one_that_was_given_it(run_job, options):
    looked = run_job(*RUN, *options, "lr_find=true")
    given = run_job(*RUN, *options, f"lr={looked['lr']!r}")
    assert looked["lr"] != compose(*RUN).lr
    assert not differing(best_weights(looked["folder"]), best_weights(given["folder"]))
    assert looked["test/target/nll"] == given["test/target/nll"]
    assert (looked["folder"] / "history.jsonl").read_text() == (given["folder"] / "history.jsonl").read_text()
    assert (looked["folder"] / "lr_find.png").stat().st_size > 5000


def test_weights_and_random_streams_stay_and_stages_keep_their_shares(monkeypatch):
    components = build(compose(*RUN, "terms=[delta]"))
    made, make = [], components.data.train_dataloader
    monkeypatch.setattr(components.data, "train_dataloader", lambda: made.append(make()) or made[-1])
    before, chance = state(components.task), torch.get_rng_state()
    first = find_lr(components.task, components.data, pl.Trainer(accelerator="cpu", logger=False), Console(quiet=True))
    assert not differing(before, state(components.task))
    assert torch.equal(chance, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in components.task.parameters())
    assert components.task.terms["delta"].now.passes == []
    assert len(made) == 1, "passes share their loaders, and with them their workers"
    second = find_lr(components.task, components.data, pl.Trainer(accelerator="cpu", logger=False), Console(quiet=True))
    assert (first.lr, first.losses.tolist()) == (second.lr, second.losses.tolist())
    assert 1e-4 < first.lr < 0.5
    assert first.losses[-1] <= 4 * first.losses.min()


def test_the_rate_of_phases_is_found_with_all_that_ever_moves():
    """With the head alone it would be that of a linear probe."""
    options = (*RUN, "norm=per_domain")

    def rate(*strategy):
        components = build(compose(*options, *strategy))
        trainer = pl.Trainer(accelerator="cpu", logger=False)
        return find_lr(components.task, components.data, trainer, Console(quiet=True)).lr

    lp_ft = ("strategy=lp_ft", "strategy.backbone_lr_mult=1")
    phased = rate(*lp_ft, "strategy.probe_epochs=1")
    assert phased == rate(*lp_ft, "strategy.probe_epochs=0")
    assert phased != rate("strategy=shared_representation")


def test_a_loss_that_nothing_lowers_is_said(monkeypatch):
    components = build(compose(*RUN))
    value = iter(range(1, 1000))
    frozen = components.task.model.heads["target"].weight
    monkeypatch.setattr(
        type(components.task), "training_step", lambda self, *_: 1.2 ** next(value) + 0 * next(self.parameters()).sum()
    )
    with pytest.raises(UsageError, match=r"the loss decreases at no rate between .*; set lr= yourself"):
        find_lr(components.task, components.data, pl.Trainer(accelerator="cpu", logger=False), Console(quiet=True))
    assert frozen.grad is None
    with pytest.raises(UsageError, match="lr_find=true: tries rates in one process"):
        build(compose(*RUN, "lr_find=true", "trainer=ddp"))


def test_stopping_early_changes_no_epoch_before(run_job):
    def history(run):
        return [json.loads(line) for line in (run["folder"] / "history.jsonl").read_text().splitlines()]

    run = (*RUN, "epochs=12", "lr=0.05", "monitor=val/target/accuracy")
    straight, patient, early = run_job(*run), run_job(*run, "patience=100"), run_job(*run, "patience=1")
    assert not differing(best_weights(straight["folder"]), best_weights(patient["folder"]))
    assert history(straight) == history(patient)
    assert len(history(early)) < 12
    assert history(straight)[: len(history(early))] == history(early)
