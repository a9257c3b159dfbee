import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from tlexp.errors import UsageError
from tlexp.objective.joint import CrossEntropy, balanced_weights
from tlexp.objective.weights import DomainWeights


@pytest.mark.parametrize(
    ("alpha", "form", "expected"),
    [
        (0.0, "sum", (1, 0)),
        (0.5, "sum", (1, 0.5)),
        (3.0, "convex", (0.25, 0.75)),
        (math.inf, "sum", (0, 1)),
        (math.inf, "convex", (0, 1)),
    ],
)
def test_weights_follow_the_formula(alpha, form, expected):
    weights = DomainWeights(alpha, form)
    assert (weights.target, weights.source) == expected


def test_alpha_zero_and_infinity_never_touch_the_absent_loss():
    loss = torch.tensor(2.0)
    assert DomainWeights(0.0).combine({"target": loss}) is loss
    assert DomainWeights(math.inf).combine({"source": loss}) is loss


@pytest.mark.parametrize("form", ["sum", "convex"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 10.0, math.inf])
def test_full_batch_descent_finds_the_weighted_mean_of_a_quadratic(alpha, form):
    """With l = (theta - x)^2 / 2 the minimiser is (mean_T + alpha mean_S) / (1 + alpha)."""
    target, source = torch.tensor([1.0, 2.0, 6.0]).double(), torch.tensor([-4.0, 8.0]).double()
    theta = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=0.5 / (1 if form == "convex" or math.isinf(alpha) else 1 + alpha))
    losses = {}
    for _ in range(200):
        if not math.isinf(alpha):
            losses["target"] = ((theta - target) ** 2 / 2).mean()
        if alpha > 0:
            losses["source"] = ((theta - source) ** 2 / 2).mean()
        optimizer.zero_grad(set_to_none=True)
        DomainWeights(alpha, form).combine(losses).backward()
        optimizer.step()
    share = 1.0 if math.isinf(alpha) else alpha / (1 + alpha)
    expected = (1 - share) * target.mean() + share * source.mean()
    assert theta.item() == pytest.approx(expected.item(), abs=1e-10)


def test_cross_entropy_is_torchs_for_each_example():
    logits, labels = torch.randn(7, 4), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.allclose(CrossEntropy(0.1)(logits, labels).mean(), expected)


def test_balanced_weights_are_scikit_learns():
    labels = np.array([0] * 9 + [1] * 1 + [2] * 5)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    ours = balanced_weights(torch.from_numpy(labels), 3)
    assert np.allclose(ours, expected)
    assert ours[torch.from_numpy(labels)].mean().item() == pytest.approx(1.0)


def test_a_class_without_examples_gets_no_weight():
    assert balanced_weights(torch.tensor([0, 0, 2]), 3).tolist() == pytest.approx([0.75, 0.0, 1.5])


@pytest.mark.parametrize(
    ("alpha", "roles", "evaluated"),
    [
        (0.0, ("target",), ("target",)),
        (0.5, ("target", "source"), ("target", "source")),
        (math.inf, ("source",), ("target", "source")),
    ],
)
def test_alpha_decides_which_roles_train_and_which_are_evaluated(alpha, roles, evaluated):
    weights = DomainWeights(alpha)
    assert (weights.roles, weights.evaluated_roles) == (roles, evaluated)


@pytest.mark.parametrize("alpha", [-0.1, math.nan])
def test_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(UsageError, match="must be finite and >= 0, or inf for the source alone"):
        DomainWeights(alpha)


@pytest.mark.parametrize(
    ("alpha", "backbone_trains", "separate_heads", "acts"),
    [
        (0.0, True, False, False),
        (0.5, True, True, True),
        (0.5, False, False, True),
        (0.5, False, True, False),
    ],
)
def test_alpha_acts_on_the_target_through_what_both_domains_share(alpha, backbone_trains, separate_heads, acts):
    assert DomainWeights(alpha).acts_on_target(backbone_trains, separate_heads) is acts
