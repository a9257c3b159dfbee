from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from tests.helpers import compose, fit
from tlexp.errors import UsageError
from tlexp.training.schedules import constant, cosine, slanted


class Rates(pl.Callback):
    """Notes the head's rate at each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[-1]["lr"])


def test_cosine_peaks_and_ends_where_it_says():
    factors = [cosine(step, 100, warmup=0.1) for step in range(101)]
    assert factors.index(max(factors)) == 10
    assert factors[10] == 1.0
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    assert factors[:11] == sorted(factors[:11])
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_constant_stays_after_its_warm_up():
    assert [constant(step, 10, warmup=0.2) for step in range(5)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


@pytest.mark.parametrize(("total", "ratio"), [(100, 32), (250, 10)])
def test_slanted_is_the_published_triangle(total, ratio):
    cut = total // 10
    for t in range(total):
        share = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / 0.1 - 1))
        assert slanted(t, total, 0.1, ratio) == pytest.approx((1 + share * (ratio - 1)) / ratio)
    with pytest.raises(UsageError, match=r"schedule.ratio=0.5: the highest rate over the lowest, at least 1"):
        slanted(0, total, 0.1, 0.5)


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (("epochs=4",), 4 * 3),
        (("epochs=4", "alpha=1"), 4 * 3),
        (("epochs=4", "trainer.accumulate_grad_batches=3"), 4),
        (("epochs=4", "trainer.limit_train_batches=2"), 4 * 2),
        (("epochs=4", "batch_size=8"), 4 * 5),
    ],
)
def test_the_schedule_counts_optimizer_steps(overrides, steps):
    """Accumulation, limits, batch size and a second loader all change the steps; peak and end move with them."""
    rates = Rates()
    fit(compose("init=random", "schedule.warmup=0.25", "strategy=linear_probe", "lr=1.0", *overrides), rates)
    seen = rates.seen
    assert len(seen) == steps
    assert seen.index(max(seen)) == round(0.25 * steps)
    assert max(seen) == pytest.approx(1.0)
    assert seen[-1] == pytest.approx(cosine(steps - 1, steps, 0.25))


def test_torch_agrees_with_the_cosine():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(cosine(step, 20, warmup=0.0), abs=1e-9)
        optimizer.step()
        scheduler.step()
