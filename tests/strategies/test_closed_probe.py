"""The solved probe against scikit-learn's optimum, against training, and against the order of the data."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tests.helpers import best_weights, compose, differing, fit, fit_full_batches, state
from tlexp.errors import UsageError
from tlexp.models.logistic_regression import LogisticRegressionSolver
from tlexp.runs.build import build

RUN = ("strategy=closed_probe", "init=random", "backbone.width=8", "data.test_fraction=0.9")
THREE = ("data.source.classes=[0,1,2]", "data.target.classes=[0,1,2]", "batch_size=12")


def solved(*options):
    components, _ = fit(compose(*RUN, *options))
    return components


def test_the_backbone_stays_and_the_epoch_at_rate_zero_leaves_the_head():
    before = state(build(compose(*RUN)).task.model)
    components, longer = solved(), solved("epochs=3")
    after = state(components.task.model)
    assert differing(before, after) == {"heads.target.weight", "heads.target.bias"}
    assert not differing(after, state(longer.task.model))


@pytest.mark.parametrize("classes", ["[0,1]", "[0,1,2]"])
@pytest.mark.parametrize("alpha", ["0", "0.5", "inf"])
def test_it_is_the_minimum_of_the_joint_loss_with_a_penalty(classes, alpha):
    """Written down here once more: |W|^2 / 2 + c n (mean loss of the target + alpha * mean loss of the source)."""
    options = (f"alpha={alpha}", f"data.source.classes={classes}", f"data.target.classes={classes}", "batch_size=8")
    components = solved(*options, "strategy.low=-1", "strategy.high=-1", "strategy.steps=1")
    data, model = components.data, components.task.model
    rows = {"0": {"target": 1.0}, "0.5": {"target": 1.0, "source": 0.5}, "inf": {"source": 1.0}}[alpha]
    features = {role: data.features(model, role, "train") for role in rows}
    x = torch.cat([f for f, _ in features.values()]).double()
    y = torch.cat([labels for _, labels in features.values()])
    n = len(next(iter(features.values()))[1])
    shares = torch.cat(
        [torch.full((len(labels),), rows[role] * n / len(labels)) for role, (_, labels) in features.items()]
    )
    scale = x.numpy().std()
    w = (model.heads["target"].weight.detach().double() * scale).requires_grad_()
    b = model.heads["target"].bias.detach().double().requires_grad_()
    losses = torch.nn.functional.cross_entropy(x / scale @ w.T + b, y, reduction="none")
    whole = w.pow(2).sum() / 2 + 0.1 * (shares * losses).sum()
    gradients = torch.autograd.grad(whole, [w, b])
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-4


def test_training_to_the_end_gives_the_same(monkeypatch):
    """Weight decay is the penalty: scale^2 / (c n), with the scale that features are divided by."""
    trained = build(
        compose(
            *RUN[1:],
            *THREE,
            "strategy=linear_probe",
            "optimizer=sgd",
            "lr=0.1",
            "epochs=3",
            "optimizer.weight_decay=0.05",
            "backbone.dropout=0",
            "alpha=0",
        )
    )
    fit_full_batches(trained, epochs=3, steps=500)
    x, _ = trained.data.features(trained.task.model, "target", "train")
    c = np.log10(x.double().numpy().std() ** 2 / (0.05 * len(x)))
    components = solved(*THREE, "alpha=0", f"strategy.low={c}", f"strategy.high={c}", "strategy.steps=1")
    with torch.no_grad():
        ours, theirs = (task.model.classify(x) for task in (components.task, trained.task))
    ours, theirs = (logits - logits.mean(1, keepdim=True) for logits in (ours, theirs))
    assert theirs.abs().max() > 0.1
    assert (ours - theirs).abs().max() < 1e-3


@pytest.mark.parametrize("c", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_neither_the_order_of_the_data_nor_the_solver_matters(classes, c):
    rng = np.random.default_rng(0)
    labels = torch.arange(120) % classes
    features = torch.from_numpy(rng.normal(size=(120, 20)) + 0.8 * np.eye(20)[labels]).float()
    order = torch.from_numpy(rng.permutation(120))
    one, two = (
        LogisticRegressionSolver(features, labels, classes).at(c),
        LogisticRegressionSolver(features[order], labels[order], classes).at(c),
    )
    x = features.numpy().astype(float)
    fit = LogisticRegression(C=2 * c if classes == 2 else c, tol=1e-12, max_iter=100_000).fit(
        (x - x.mean()) / x.std(), labels
    )
    oracle = fit.predict_log_proba((x - x.mean()) / x.std())
    with torch.no_grad():
        assert (one(features) - two(features)).abs().max() < 1e-5
        assert np.abs(one(features).log_softmax(1).numpy() - oracle).max() < 1e-4


def test_the_penalty_with_the_smallest_validation_loss_is_kept(run_job):
    found = run_job(*RUN, *THREE, "epochs=1")
    tried = [run_job(*RUN, *THREE, f"strategy.low={c}", f"strategy.high={c}", "strategy.steps=1") for c in (-4, -1, 2)]
    assert found["val/target/nll"] <= min(other["val/target/nll"] for other in tried) + 1e-4
    grid = np.logspace(-6, 2, 45)
    assert np.isclose(grid, found["c"]).sum() == 1
    assert best_weights(found["folder"])["strategy.c"].item() == pytest.approx(found["c"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("strategy.steps=0",), "strategy.steps=0: must be at least 1"),
        (("strategy.low=3",), "strategy.low=3: must be at most strategy.high=2"),
        (("head_hidden=8",), "solves one linear layer"),
        (("alpha=0.5", "head=two"), "cannot reach the target"),
    ],
)
def test_what_cannot_be_solved_is_said(options, message):
    with pytest.raises(UsageError, match=message):
        build(compose(*RUN, *options))


@pytest.mark.parametrize(
    "option", ["objective.label_smoothing=0.1", "objective.mixup=1", "data.sampling=balanced", "terms=[mcc]"]
)
def test_what_it_would_ignore_is_refused(option):
    with pytest.raises(UsageError, match="cannot solve it; leave it out or use linear_probe"):
        solved(option)
