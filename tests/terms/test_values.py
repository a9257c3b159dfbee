"""Losses against published code's values and closed forms, on the digits as scikit-learn ships them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn

from tlexp.errors import UsageError
from tlexp.models.temperature import temperature
from tlexp.terms.base import DomainOutput, StepContext
from tlexp.terms.bss import BSS
from tlexp.terms.co_tuning import direct, reverse
from tlexp.terms.coral import Coral
from tlexp.terms.dann import DANN, Reversal, certainty, domain_loss, grl_lambda
from tlexp.terms.distill import divergence
from tlexp.terms.mcc import MCC
from tlexp.terms.mmd import MMD


@pytest.fixture(scope="module")
def recipe():
    """Features (898, 16) of the odd digits, their labels, and soft predictions (898, 5) of a source task."""
    x, y = load_digits(return_X_y=True)
    x = x / 16
    pca = PCA(16, svd_solver="full").fit(x[0::2])
    f, z = pca.transform(x[1::2]), y[0::2] // 2
    before = pca.transform(x[0::2])
    centres = np.stack([before[z == k].mean(0) for k in range(5)])
    p = torch.from_numpy(-((f[:, None] - centres) ** 2).sum(2)).softmax(1)
    assert p[0].tolist() == pytest.approx([0.300418, 0.106070, 0.242860, 0.199308, 0.151344], abs=1e-6)
    return torch.from_numpy(f), torch.from_numpy(y[1::2]), p


def passed(features, logits=None, labels=None):
    n = len(features)
    logits = torch.zeros(n, 2, dtype=features.dtype) if logits is None else logits
    return DomainOutput(features, torch.zeros(n, dtype=torch.long) if labels is None else labels, features, logits)


def of_pair(term, source, target):
    return float(term(None, StepContext(passed(target), passed(source))))


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (Coral("coral", unbiased=False), 0.000517),
        (Coral("coral", kind="mean", unbiased=False), 0.008899),
        (MMD("mmd", unbiased=False), 0.093794),
        (MMD("mmd"), 0.034472),
    ],
)
def test_distances_of_domains(recipe, term, expected):
    features, _, _ = recipe
    assert of_pair(term, features[:100], features[100:200]) == pytest.approx(expected, abs=1e-6)
    assert of_pair(term, features[100:200], features[:100]) == pytest.approx(expected, abs=1e-6)
    order = torch.randperm(100)
    assert of_pair(term, features[:100][order], features[100:200]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["covariance", "mean"])
def test_coral_of_small_batches_is_the_distance_of_the_domains_on_average(kind):
    generator = torch.Generator().manual_seed(0)
    stretch, shift = torch.linspace(0.5, 2, 32), 0.3

    def batch(n, other):
        z = torch.randn(n, 32, generator=generator)
        return z * stretch + shift if other else z

    terms = (Coral("coral", kind=kind), Coral("coral", kind=kind, unbiased=False))
    pairs = [(batch(16, False), batch(13, other)) for other in (False, True) for _ in range(400)]
    values = np.array([[of_pair(term, *pair) for pair in pairs] for term in terms]).reshape(2, 2, 400)
    covariances = float(((stretch**2 - 1) ** 2).sum())
    distance = {"covariance": covariances / (4 * 32**2), "mean": shift**2 + covariances / 32**2}[kind]
    error = values.std(2, ddof=1) / 20
    assert abs(values[0, 0].mean()) < 4 * error[0, 0], "two batches of one domain"
    assert abs(values[0, 1].mean() - distance) < 4 * error[0, 1]
    assert values[1, 0].mean() > distance / 2, "the paper's own value is mostly the error of the covariances"


@pytest.mark.parametrize(("k", "expected"), [(1, 0.074612), (3, 0.609075)])
def test_the_smallest_singular_values(recipe, k, expected):
    features = recipe[0][:12].clone().requires_grad_()
    term = BSS("bss", k=k)
    value = term(None, StepContext(passed(features), None))
    assert value.item() == pytest.approx(expected, abs=1e-5)
    shuffled = term(None, StepContext(passed(features[torch.randperm(12)]), None))
    assert shuffled.item() == pytest.approx(value.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, features)
    u, s, v = np.linalg.svd(features.detach().numpy(), full_matrices=False)
    theirs = sum(2 * s[-i] * np.outer(u[:, -i], v[-i]) for i in range(1, k + 1))
    assert np.abs(gradient.numpy() - theirs).max() < 1e-5


def test_singular_values_that_are_equal_or_zero_have_a_finite_gradient():
    features = torch.eye(4, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(BSS("bss")(None, StepContext(passed(features), None)), features)
    assert gradient.isfinite().all()
    of_low_rank = torch.ones(5, 3).requires_grad_()
    value = BSS("bss")(None, StepContext(passed(of_low_rank), None))
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert torch.autograd.grad(value, of_low_rank)[0].isfinite().all()


def test_class_confusion(recipe):
    _, _, p = recipe
    value = MCC("mcc")(None, StepContext(passed(p[:100], p[:100].log()), None))
    assert float(value) == pytest.approx(0.756956, abs=1e-6)
    sure = torch.full((6, 3), -1000.0)
    sure[range(6), [0, 0, 1, 1, 0, 1]] = 1000.0  # nobody predicts the third class
    sure.requires_grad_()
    value = MCC("mcc")(None, StepContext(passed(sure, sure), None))
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(value, sure)[0].isfinite().all()


@pytest.mark.parametrize("gap", [5.0, 25.0, 30.0])
def test_class_confusion_of_a_rare_class_is_that_of_the_formula(gap):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 3, generator=generator)
    logits[:, 2] -= gap
    single, double = logits.clone().requires_grad_(), logits.double().requires_grad_()
    value = MCC("mcc", temperature=1.0)(None, StepContext(passed(single, single), None))
    p = double.softmax(1)
    certainty = 1 + torch.exp((p * p.clamp(min=1e-5).log()).sum(1).detach())
    confusion = (p * (8 * certainty / certainty.sum())[:, None]).T @ p
    confusion = confusion / confusion.sum(1, keepdim=True)
    theirs = (confusion.sum() - confusion.trace()) / 3
    assert value.item() == pytest.approx(theirs.item(), abs=1e-5)
    gradients = (torch.autograd.grad(of, at)[0] for of, at in ((value, single), (theirs, double)))
    assert torch.allclose(*(gradient.double() for gradient in gradients), atol=1e-5)


def test_distillation(recipe):
    _, _, p = recipe
    student, teacher = p[:10].log(), p[10:20].log()
    value = divergence(student, teacher, 2.0).mean()
    assert float(value) == pytest.approx(0.196937, abs=1e-6)
    assert 4 * float(value) == pytest.approx(0.787749, abs=1e-5)
    cross_entropy = -((teacher / 2).softmax(1) * (student / 2).log_softmax(1)).sum(1).mean()
    entropy = -((teacher / 2).softmax(1) * (teacher / 2).log_softmax(1)).sum(1).mean()
    assert float(cross_entropy) == pytest.approx(1.693133, abs=1e-6)
    assert float(value) == pytest.approx(float(cross_entropy - entropy), abs=1e-6)
    assert divergence(student, student, 2.0).abs().max() < 1e-12


def test_the_relationship_of_old_and_new_classes(recipe):
    _, labels, p = recipe
    actual = direct(p.numpy(), labels.numpy(), 10)
    assert actual[0] == pytest.approx([0.613651, 0.032838, 0.109904, 0.086142, 0.157465], abs=1e-6)
    assert actual.sum(1) == pytest.approx(np.ones(10))
    value = -(torch.from_numpy(actual)[labels] * p.log()).sum(1).mean()
    assert float(value) == pytest.approx(1.420658, abs=1e-6)


def test_the_same_classes_and_a_perfect_source_are_related_to_themselves():
    labels = np.arange(60) % 4
    p = np.full((60, 4), 1e-6)
    p[range(60), labels] = 1 - 3e-6
    assert np.abs(direct(p, labels, 4) - np.eye(4)).max() < 1e-5
    actual = reverse(p, labels, p[:20], labels[:20])
    assert np.abs(actual - np.eye(4)).max() < 1e-3


def test_the_reversed_relationship_is_bayes_rule(recipe):
    """Old classes are pairs of digits, so that a digit's own pair is what it is most like."""
    _, labels, p = recipe
    sharp = (5 * p.log()).softmax(1).numpy()
    actual = reverse(sharp[:600], labels[:600].numpy(), sharp[600:], labels[600:].numpy())
    assert actual.sum(1) == pytest.approx(np.ones(10))
    assert (actual.argmax(1) == np.arange(10) // 2).mean() >= 0.9
    of_two = labels[:600] < 2
    actual = reverse(
        sharp[:600][of_two], labels[:600][of_two].numpy(), sharp[:600][of_two], labels[:600][of_two].numpy()
    )
    assert actual.shape == (2, 5)


def test_a_temperature_undoes_a_scale():
    torch.manual_seed(0)
    logits = torch.randn(4000, 5).double()
    labels = torch.multinomial(logits.softmax(1), 1)[:, 0].numpy()
    found = temperature(logits.numpy(), labels)
    assert found == pytest.approx(1, abs=0.06)
    assert temperature(3 * logits.numpy(), labels) == pytest.approx(3 * found, rel=1e-3)


@pytest.mark.parametrize(
    ("progress", "expected"), [(0, 0), (0.1, 0.462117), (0.25, 0.848284), (0.5, 0.986614), (1, 0.999909)]
)
def test_the_reversed_gradient_grows(progress, expected):
    assert grl_lambda(progress) == pytest.approx(expected, abs=1e-6)


def test_the_features_gradient_is_the_discriminators_reversed():
    """By finite differences of the discriminator's own loss; at the start of training it is nothing at all."""
    torch.manual_seed(0)
    term = DANN("dann", hidden=8).double()
    term.discriminator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    source, target = (torch.randn(5, 3).double().requires_grad_() for _ in range(2))

    def loss(source, target):
        logits = term.discriminator(torch.cat([source, target]))[:, 0]
        ones = torch.cat([torch.ones(5), torch.zeros(5)]).double()
        return F.binary_cross_entropy_with_logits(logits, ones)

    value = term(None, StepContext(passed(target), passed(source), 0.25))
    assert value.item() == pytest.approx(loss(source, target).item())
    (gradient,) = torch.autograd.grad(value, source)
    for index in ((0, 0), (3, 2)):
        step = torch.zeros_like(source)
        step[index] = 1e-6
        slope = (loss(source + step, target) - loss(source - step, target)).item() / 2e-6
        assert gradient[index].item() == pytest.approx(-grl_lambda(0.25) * slope, rel=1e-5)
    at_start = term(None, StepContext(passed(target), passed(source), 0.0))
    assert not torch.autograd.grad(at_start, source)[0].any()
    x = torch.ones(2, requires_grad=True)
    assert torch.autograd.grad(Reversal.apply(x, 2.0).sum(), x)[0].tolist() == [-2, -2]


def test_sure_predictions_weigh_more(recipe):
    _, _, p = recipe
    weights = certainty(p[:4])
    assert weights.tolist() == pytest.approx([0.926987, 1.068523, 0.999897, 1.004593], abs=1e-6)
    even = domain_loss(torch.zeros(3), torch.zeros(5), torch.ones(3), None)
    assert float(even) == pytest.approx(math.log(2))


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf])
def test_weights_are_finite_and_not_negative(weight):
    with pytest.raises(UsageError, match=r"terms.coral.weight=.*: must be finite and >= 0; 0 is off"):
        Coral("coral", weight)
