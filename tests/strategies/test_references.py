"""What a comparison is to be seen against: the source's own head, and class means, computed without any step."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from tests.helpers import compose, differing, fit, state
from tlexp import run_folder
from tlexp.errors import UsageError
from tlexp.runs.build import build
from tlexp.runs.source_weights import source_folder


@pytest.fixture
def with_source(run_job, store):
    """With the source's own run in it."""
    run_job("strategy=linear_probe", "epochs=1")
    return store


def test_zero_shot_is_the_source_run_on_the_targets_test(run_job, with_source):
    result = run_job("strategy=zero_shot")
    components = build(compose(f"store={with_source}", "strategy=finetune", "head_init=source"))
    model, data = components.task.model.eval(), components.data
    test = data.raw("target", "test")
    with torch.no_grad():
        right = model(test.inputs[range(len(test))]).argmax(1) == test.labels
    assert result["test/target/accuracy"] == pytest.approx(right.float().mean().item())
    assert result["test/target/accuracy"] > 0.4, "the classes are the same, the hands are not"


def test_the_sources_own_head_starts_where_its_run_ended(with_source):
    """At step 0 the source is classified as its own run classifies it; the target's head is new."""
    config = compose(f"store={with_source}", "alpha=1", "head=two")
    components = build(config)
    model, data = components.task.model.eval(), components.data
    assert model.pretrained_heads == {"source"}
    test = data.raw("source", "test")
    with torch.no_grad():
        accuracy = (model(test.inputs[range(len(test))], "source").argmax(1) == test.labels).double().mean().item()
    assert accuracy == pytest.approx(run_folder.read_metrics(source_folder(config))["test/target/accuracy"], abs=1e-6)
    fresh = build(compose(f"store={with_source}", "alpha=1", "head=two", "init=random"))
    assert fresh.task.model.pretrained_heads == set()
    assert not differing(state(model.heads["target"]), state(fresh.task.model.heads["target"]))


def test_other_classes_are_said_before_the_source_is_trained(run_job, tmp_path):
    with pytest.raises(UsageError, match="head_init=source: source and target have different classes: "):
        run_job("strategy=zero_shot", "data.target.classes=[0,1,2]", f"store={tmp_path}/other")
    assert not list((tmp_path / "other").glob("*/metrics.json"))


def test_features_do_not_know_a_new_head_of_the_same_seed(with_source):
    """The source's run draws its head elsewhere: else a head of its seed would predict before any step."""
    components = build(compose(f"store={with_source}", "strategy=finetune", "seed=0", "pretrain.seed=0"))
    model, data = components.task.model.eval(), components.data
    test = data.raw("target", "test")
    with torch.no_grad():
        right = model(test.inputs[range(len(test))]).argmax(1) == test.labels
    assert right.float().mean() < 0.3


@pytest.mark.parametrize("options", [("init=random",), ("data.target.classes=[0,1,2]",)])
def test_a_head_that_is_not_there_is_one_line(with_source, options):
    with pytest.raises(UsageError, match=r"head_init=source: init=\w+ brings no head"):
        build(compose(f"store={with_source}", "head_init=source", *options))


@pytest.mark.parametrize("alpha", ["0", "1"])
def test_the_nearest_mean_is_scikit_learns(alpha):
    components, _ = fit(compose("strategy=nearest_mean", "init=random", "head=one", f"alpha={alpha}"))
    model, data = components.task.model, components.data
    sets = {
        role: data.features(model, role, "train") for role in (["target"] if alpha == "0" else ["target", "source"])
    }
    features, labels = data.features(model, "target", "test")
    with torch.no_grad():
        ours = model.classify(features).argmax(1)
    if alpha == "0":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # features that are constant within classes
            theirs = NearestCentroid().fit(*(part.numpy() for part in sets["target"])).predict(features.numpy())
        assert (ours.numpy() == theirs).all()
    else:
        n_target, n_source = (len(part[1]) for part in sets.values())
        weights = np.repeat([1.0, n_target / n_source], [n_target, n_source])
        x, y = (np.concatenate(column) for column in zip(*sets.values(), strict=True))
        means = np.stack([np.average(x[y == c], axis=0, weights=weights[y == c]) for c in range(10)])
        distances = ((features.numpy()[:, None] - means) ** 2).sum(2)
        assert (ours.numpy() == distances.argmin(1)).mean() > 0.99
    assert (ours == labels).float().mean() > 0.3


def test_one_label_a_class_has_means_too():
    few = ("data.shots=1", "data.val=large", "strategy=nearest_mean", "init=random")
    components, _ = fit(compose(*few))
    assert all(p.isfinite().all() for p in components.task.model.heads["target"].parameters())
