import shutil

import numpy as np
import pytest
import torch

from tests.helpers import STRATEGIES, compose, tree
from tlexp.backbones.base import InputSpec
from tlexp.data.datamodule import TransferDataModule
from tlexp.data.domains import Domain, check_domains
from tlexp.data.images.sources import PixelArray
from tlexp.data.samples import Samples
from tlexp.data.splits import Split
from tlexp.errors import UsageError
from tlexp.runs.build import build
from tlexp.runs.domains import read_domain

SPEC = InputSpec(channels=1, size=4, mean=(0.5,), std=(0.5,))


def domain(train, val=2, test=2):
    n = train + val + test
    samples = Samples("toy", PixelArray(np.zeros((n, 4, 4, 1), np.uint8)), np.arange(n) % 2, ("a", "b"))
    cuts = np.split(np.arange(n), [train, train + val])
    return Domain(samples, Split(*cuts))


def two_domains():
    return TransferDataModule({"target": domain(8), "source": domain(10)}, SPEC, 4, 0, ("target", "source"))


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
    domains = {"target": domain(**target)} | ({"source": domain(**source)} if source else {})
    with pytest.raises(UsageError, match=message):
        check_domains(domains, SPEC, 4, tuple(domains))


def test_iterating_leaves_the_global_random_stream():
    data = two_domains()
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert len(list(loader)) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_brings_one_batch_of_each_trained_role():
    data = two_domains()
    steps = [batch for batch, _, _ in data.train_dataloader()]
    assert len(steps) == data.steps == 2
    assert [{role: len(part.labels) for role, part in step.items()} for step in steps] == [
        {"target": 4, "source": 4}
    ] * 2


CHOICES = [
    f"strategy={strategy} seed={seed} alpha={alpha}"
    for strategy, seed, alpha in zip(STRATEGIES, range(9), ("0", "0.5", "0", "1", "0.1"), strict=False)
]


def chosen(line, *more):
    return build(compose("init=random", "head=one", *line.split(), *more)).data.domains["target"]


def test_the_splits_do_not_depend_on_strategy_seed_or_alpha():
    assert len({chosen(line).split_hash for line in CHOICES}) == 1


def test_label_budgets_are_nested_whatever_else_is_chosen():
    few, some, many = (chosen(line, f"data.shots={k}") for line, k in zip(CHOICES, (4, 8, 20), strict=False))
    for small, large in ((few, some), (some, many)):
        assert set(small.split.train) < set(large.split.train)
        assert set(small.split.val) <= set(large.split.val)
        assert set(small.split.test) == set(large.split.test)


def test_the_hash_tells_what_lies_in_which_split(tmp_path):
    folder = tree(tmp_path / "pets", cat=20, dog=20)

    def hash_of(folder, *more):
        return read_domain(
            compose("data=images", f"data.target.root={folder}", "init=random", *more), "target"
        ).split_hash

    shutil.copytree(folder, tmp_path / "elsewhere/pets")
    assert hash_of(folder) == hash_of(tmp_path / "elsewhere/pets"), "wherever the data lie"
    others = [hash_of(folder, more) for more in ("split_seed=1", "data.shots=5", "data.test_fraction=0.2")]
    (folder / "cat/3.png").rename(folder / "cat/other.png")
    assert len({hash_of(folder), hash_of(tmp_path / "elsewhere/pets"), *others}) == 5
