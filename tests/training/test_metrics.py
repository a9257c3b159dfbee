import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from tlexp.metric_names import METRICS
from tlexp.training.metrics import DomainMetrics, wilson_interval

CLASSES = 10


def evaluate(logits: torch.Tensor, labels: torch.Tensor, sizes: list[int]) -> DomainMetrics:
    evaluation = DomainMetrics(CLASSES)
    for part, truth in zip(logits.split(sizes), labels.split(sizes), strict=True):
        evaluation.update(part, truth)
    return evaluation


@pytest.mark.parametrize("sizes", [[8, 8, 1], [17], [1] * 17])
@pytest.mark.parametrize("shuffle", [False, True])
def test_metrics_are_scikit_learns_whatever_the_batches(sizes, shuffle):
    torch.manual_seed(0)
    labels = torch.tensor([0] * 9 + [1, 2, 3, 3, 3, 4, 4, 5])
    logits = 2 * torch.randn(17, CLASSES) + 2 * torch.nn.functional.one_hot(labels, CLASSES)
    if shuffle:
        order = torch.randperm(17)
        logits, labels = logits[order], labels[order]
    evaluation = evaluate(logits, labels, sizes)
    values = {name: float(value) for name, value in evaluation.compute().items()}
    guesses = logits.argmax(1)
    assert values["accuracy"] == pytest.approx(accuracy_score(labels, guesses), abs=1e-6)
    assert values["macro_f1"] == pytest.approx(f1_score(labels, guesses, average="macro"), abs=1e-6)
    expected = log_loss(labels, logits.double().softmax(1), labels=range(CLASSES))
    assert values["nll"] == pytest.approx(expected, abs=1e-5)
    expected_matrix = confusion_matrix(labels, guesses, labels=range(CLASSES))
    assert (evaluation.confusion.compute().numpy() == expected_matrix).all()


def test_absent_classes_do_not_lower_macro_scores():
    labels = torch.tensor([0, 1, 2, 0, 1])
    perfect = evaluate(10.0 * torch.nn.functional.one_hot(labels, CLASSES), labels, [4, 1]).compute()
    assert perfect["accuracy"] == perfect["macro_f1"] == 1.0


def test_accuracy_is_over_examples_and_macro_over_classes():
    labels = torch.tensor([0] * 9 + [1])
    values = evaluate(torch.nn.functional.one_hot(torch.zeros(10, dtype=torch.long), CLASSES).float(), labels, [10])
    assert float(values.compute()["accuracy"]) == pytest.approx(0.9)
    assert float(values.compute()["macro_f1"]) == pytest.approx(0.5 * 2 * 0.9 / 1.9, abs=1e-6)


def test_ece_is_the_reference_value():
    """Digits, PCA, distances to class means: 0.245648 with 15 bins, computed once by other means than ours."""
    x, y = load_digits(return_X_y=True)
    x = x / 16
    pca = PCA(16, svd_solver="full").fit(x[0::2])
    source, target, task = pca.transform(x[0::2]), pca.transform(x[1::2]), y[0::2] // 2
    means = np.stack([source[task == k].mean(0) for k in range(5)])
    logits = torch.from_numpy(-((target[:, None] - means[None]) ** 2).sum(-1))
    evaluation = DomainMetrics(5)
    evaluation.update(logits, torch.from_numpy(y[1::2] // 2))
    assert float(evaluation.compute()["ece"]) == pytest.approx(0.245648, abs=2e-6)


def test_classes_and_probabilities_have_their_own_metrics():
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 4), torch.randint(0, 3, (200,))  # the fourth class has no example
    logits[labels == 1, 1] += 2
    metrics = DomainMetrics(4)
    for part in (slice(0, 90), slice(90, 200)):
        metrics.update(logits[part], labels[part])
    found = metrics.compute()
    right = (logits.argmax(1) == labels).double()
    of_classes = [right[labels == label].mean() for label in range(3)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(of_classes))
    assert found["worst_class"] == pytest.approx(min(of_classes))
    truth = np.eye(4)[labels.numpy()]
    assert found["brier"] == pytest.approx(((logits.softmax(1).numpy() - truth) ** 2).sum(1).mean(), abs=1e-6)


def test_logits_that_are_no_numbers_are_no_class():
    metrics = DomainMetrics(3)
    metrics.update(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
    metrics.update(torch.full((1, 3), math.nan), torch.zeros(1, dtype=torch.long))
    assert all(value.isnan() for value in metrics.compute().values())


def test_two_evaluations_do_not_leak_into_each_other():
    right, wrong = DomainMetrics(2), DomainMetrics(2)
    right.update(torch.eye(2), torch.tensor([0, 1]))
    wrong.update(torch.eye(2), torch.tensor([1, 0]))
    assert (float(right.compute()["accuracy"]), float(wrong.compute()["accuracy"])) == (1.0, 0.0)
    right.reset()
    right.update(torch.eye(2), torch.tensor([1, 0]))
    assert float(right.compute()["accuracy"]) == 0.0


def test_metrics_are_submodules_so_that_they_move_with_the_model():
    evaluation = DomainMetrics(3)
    of_classes = {"balanced_accuracy", "worst_class"}  # which follow from the confusion matrix
    assert set(METRICS) - of_classes | {"confusion"} == set(dict(evaluation.named_children()))


@pytest.mark.parametrize(("correct", "n"), [(85, 100), (50, 50), (0, 7), (669, 719)])
def test_wilson_interval_is_scipys(correct, n):
    expected = binomtest(correct, n).proportion_ci(method="wilson")
    assert wilson_interval(correct / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_measured_in_single(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60_000, 10, generator=generator).to(dtype)
    labels = torch.randint(10, (60_000,), generator=generator)
    half, single = DomainMetrics(10).to(dtype), DomainMetrics(10)
    for start in range(0, len(labels), 128):
        half.update(logits[start : start + 128], labels[start : start + 128])
        single.update(logits[start : start + 128].float(), labels[start : start + 128])
    for name, value in single.compute().items():
        assert float(half.compute()[name]) == pytest.approx(float(value), abs=1e-6), name
    assert float(half.compute()["nll"]) == pytest.approx(log_loss(labels, logits.double().softmax(1), labels=range(10)))
