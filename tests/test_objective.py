import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from tlexp.objective import CrossEntropy, balanced_weights, domain_weights, joint_objective


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
    assert domain_weights(alpha, form) == expected


def test_alpha_zero_and_infinity_never_touch_the_absent_loss():
    loss = torch.tensor(2.0)
    assert joint_objective({"target": loss}, 0.0) is loss
    assert joint_objective({"source": loss}, math.inf) is loss


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
        joint_objective(losses, alpha, form).backward()
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
