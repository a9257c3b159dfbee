"""The moving average of the weights: what is averaged, what is validated and kept, and what goes on after a kill."""

import pytest
import pytorch_lightning as pl
import torch

from tests.helpers import RESUMABLE, best_weights, compose, differing, fit, interrupted_and_not, state, untimed_result
from tlexp.errors import UsageError
from tlexp.runs.build import build
from tlexp.training.average import WARMUP

RUN = ("init=random", "alpha=0.5", "epochs=2", "lr=0.02", "backbone.norm=batch", "data.shots=10", "batch_size=16")


class Watch(pl.Callback):
    """Recomputes the average step by step from the weights."""

    def __init__(self, decay):
        self.decay, self.steps, self.validated = decay, 0, []

    def on_train_start(self, trainer, task):
        self.average = {name: tensor.double() for name, tensor in state(task.model).items()}

    def on_train_batch_end(self, trainer, task, *args):
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        decay = min(self.decay, (1 + self.steps) / (WARMUP + self.steps))
        for name, tensor in task.model.state_dict().items():
            self.average[name] = decay * self.average[name] + (1 - decay) * tensor.double()

    def on_validation_batch_start(self, trainer, task, *args):
        self.validated.append(state(task.model))

    def on_train_end(self, trainer, task):
        self.last = state(task.model)


@pytest.mark.parametrize("more", [(), ("trainer.accumulate_grad_batches=2",), ("norm=per_domain_affine",)])
def test_the_average_is_the_formulas_and_counters_are_not_averaged(more):
    watch = Watch(0.9)
    components, _ = fit(compose(*RUN, "ema=0.9", *more), watch)
    task = components.task
    assert task.average.steps == watch.steps > 4
    validated = watch.validated[-1]
    floats = {name for name, tensor in validated.items() if tensor.is_floating_point()}
    assert all(torch.allclose(validated[name].double(), watch.average[name], atol=1e-5) for name in floats)
    counters = validated.keys() - floats
    assert any("num_batches_tracked" in name for name in counters)
    assert all(torch.equal(validated[name], watch.last[name]) for name in counters)
    assert differing(validated, watch.last) & floats, "training goes on with the weights, not with their average"


def test_training_is_that_of_a_run_without_average():
    plain, averaged = (fit(compose(*RUN, *more))[0].task.model for more in ((), ("ema=0.99",)))
    assert not differing(state(plain), state(averaged))


@pytest.mark.parametrize(
    "options", [("strategy=linear_probe", "alpha=0"), ("strategy=lp_ft", "strategy.probe_epochs=1"), ("norm=frozen",)]
)
def test_what_is_frozen_is_the_same_to_the_bit(options):
    config = compose(*RUN, "ema=0.9", "init=random", *options)
    before = state(build(config).task.model)
    watch = Watch(0.9)
    fit(config, watch)
    first = watch.validated[0]
    moved = differing(before, first)
    if "strategy=linear_probe" in options or "strategy=lp_ft" in options:  # whose first epoch is a probe
        assert {name.split(".")[0] for name in moved} == {"heads"}
    else:
        assert not {name for name in moved if "running" in name}
        assert moved


def test_the_kept_checkpoint_says_which_weights_it_holds_and_is_what_was_validated(run_job):
    result = run_job(*RUN, "ema=0.9")
    kept = torch.load(result["folder"] / "best.ckpt", weights_only=True)
    assert kept["tlexp"]["weights"].startswith("moving average of ")
    assert kept["tlexp"]["weights"].endswith(" steps, ema=0.9")
    task = build(compose(*RUN, "ema=0.9")).task
    task.load_state_dict(kept["state_dict"])
    again = run_job(*RUN, f"init={result['checkpoint']}", "strategy=linear_probe", "epochs=1", "alpha=0")
    assert again["weights"].count("missing") == 0
    plain = run_job(*RUN)
    assert torch.load(plain["folder"] / "best.ckpt", weights_only=True)["tlexp"]["weights"] == "as trained"
    assert plain["val/target/nll"] != result["val/target/nll"]


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_the_weights_come_back_to_the_bit_in_any_precision(precision):
    runs = [(*RUN, f"trainer.precision={precision}", *more) for more in ((), ("ema=0.99",))]
    plain, averaged = (fit(compose(*run))[0].task.model for run in runs)
    assert not differing(state(plain), state(averaged))


@pytest.mark.parametrize("options", [(), ("strategy=gradual_unfreezing",)])
def test_a_run_with_an_average_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, options):
    config = compose(*RESUMABLE, "ema=0.95", "backbone.norm=batch", "epochs=3", *options, root=tmp_path)
    straight, broken = interrupted_and_not(config, tmp_path, monkeypatch)
    assert not differing(best_weights(straight), best_weights(broken))
    assert untimed_result(straight) == untimed_result(broken)


@pytest.mark.parametrize("value", ["0", "1", "-0.5", "nan"])
def test_a_decay_lies_between_0_and_1(value):
    with pytest.raises(UsageError, match=r"ema=.*: decay of the average, in"):
        compose(f"ema={value}")
