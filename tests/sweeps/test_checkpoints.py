"""How much room the checkpoints of a sweep take."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch

from tests.helpers import BACKBONES, compose
from tlexp.runs.build import build
from tlexp.sweeps import checkpoints
from tlexp.sweeps.checkpoints import CheckpointKeeper, backbone_bytes, expected_size, in_units


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_size_is_that_of_the_weights(backbone):
    options = (*BACKBONES[backbone], "init=random", "alpha=0")
    expected = backbone_bytes(compose(*options))
    model = build(compose(*options)).task.model
    backbone_of_it = sum(t.numel() * t.element_size() for t in model.backbone.state_dict().values())
    assert expected == backbone_of_it
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_a_disk_that_is_too_small_is_said(monkeypatch, tmp_path):
    jobs = [SimpleNamespace(config=compose("init=random", "alpha=0")) for _ in range(100)]
    assert expected_size(jobs, "all", tmp_path / "not/yet/there") == "checkpoints of about 142 MB"
    monkeypatch.setattr(checkpoints, "free_bytes", lambda folder: 1e8)
    said = expected_size(jobs, "all", tmp_path)
    assert said == "checkpoints of about 142 MB, but only 100 MB are free; sweep.keep=best or none keeps fewer"
    assert expected_size(jobs, "none", tmp_path) == expected_size([], "all", tmp_path) == ""


@pytest.mark.parametrize(("size", "text"), [(1_234, "1.23 KB"), (999_000_000, "999 MB"), (5e12, "5,000 GB")])
def test_sizes_have_units(size, text):
    assert in_units(size) == text


def test_a_backbone_is_built_once_for_all_trials_of_a_search(monkeypatch, tmp_path):
    built = []
    monkeypatch.setattr(checkpoints, "_known_sizes", {})
    monkeypatch.setattr(checkpoints, "backbone_bytes", lambda config: built.append(config) or 10**6)
    jobs = [SimpleNamespace(config=compose("init=random", "alpha=0")) for _ in range(2)]
    for _ in range(3):
        assert expected_size(jobs, "all", tmp_path) == "checkpoints of about 2 MB"
    assert len(built) == 1


def test_a_backbone_that_cannot_be_built_has_no_size():
    config = compose("backbone=timm", "backbone.name=no_such_network", "init=random", "alpha=0")
    assert backbone_bytes(config) == 0
    assert torch.get_default_device().type == "cpu"


def keep(compared, points, folder):
    """Lets a keeper see jobs in order, given as values and score; returns the folders whose checkpoints stay."""
    keeper = CheckpointKeeper(compose("sweep.keep=best"))
    keeper.compared = compared
    for index, (values, score) in enumerate(points):
        (folder / str(index)).mkdir(parents=True)
        (folder / str(index) / "best.ckpt").touch()
        keeper.add([SimpleNamespace(values=values)], folder / str(index), score, own=True)
    return [index for index in range(len(points)) if (folder / str(index) / "best.ckpt").exists()]


def test_the_best_of_each_method_and_problem_stays_and_of_a_search_one(tmp_path):
    values = [dict(zip(("experiment", "strategy", "lr"), row, strict=True)) for row in product("ab", "xy", "12")]
    points = [(row, float(score)) for score, row in enumerate(values)]
    assert keep(["experiment", "strategy"], points, tmp_path / "grid") == [0, 2, 4, 6], "the lowest loss of each"
    assert keep([], points, tmp_path / "search") == [0]
