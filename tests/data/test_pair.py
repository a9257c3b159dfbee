import numpy as np
import pytest
import torch

from tests.conftest import compose
from tlexp.assemble import assemble
from tlexp.backbones.base import InputSpec
from tlexp.data.images import PixelArray
from tlexp.data.pair import Domain, TransferData
from tlexp.data.samples import Samples
from tlexp.data.splits import Split
from tlexp.errors import UsageError

SPEC = InputSpec(channels=1, size=4, mean=(0.5,), std=(0.5,))


def domain(train, val=2, test=2):
    n = train + val + test
    samples = Samples("toy", PixelArray(np.zeros((n, 4, 4, 1), np.uint8)), np.arange(n) % 2, ("a", "b"))
    cuts = np.split(np.arange(n), [train, train + val])
    return Domain(samples, Split(*cuts))


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ({"train": 0}, None, "the target toy has no train example"),
        ({"train": 8, "val": 0}, None, "the target toy has no val example"),
        ({"train": 8}, {"train": 0}, "the source toy has no train example"),
        ({"train": 3}, None, "batch_size=4: the target toy has only 3 training examples; use batch_size=3 or fewer"),
        ({"train": 8}, {"train": 3}, "batch_size=4: the source toy has only 3"),
    ],
)
def test_data_too_small_for_a_batch_is_refused(target, source, message):
    roles = ("target", "source") if source else ("target",)
    with pytest.raises(UsageError, match=message):
        TransferData(domain(**target), domain(**source) if source else None, SPEC, 4, 0, roles)


def test_iterating_leaves_the_global_random_stream():
    data = TransferData(domain(8), domain(10), SPEC, 4, 0, ("target", "source"))
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert len(list(loader)) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_brings_one_batch_of_each_trained_role():
    data = TransferData(domain(8), domain(10), SPEC, 4, 0, ("target", "source"))
    steps = [batch for batch, _, _ in data.train_dataloader()]
    assert len(steps) == data.steps == 2
    assert [{role: len(part.labels) for role, part in step.items()} for step in steps] == [
        {"target": 4, "source": 4}
    ] * 2


def test_the_splits_do_not_depend_on_seed_strategy_or_alpha(store):
    hashes = set()
    for overrides in (
        ("seed=1",),
        ("seed=2", "alpha=1"),
        ("strategy=linear_probe",),
        ("strategy=scratch", "head=two", "alpha=0.5"),
    ):
        parts = assemble(compose("init=random", *overrides))
        hashes.add(parts.data.domains["target"].split_hash)
    assert len(hashes) == 1
