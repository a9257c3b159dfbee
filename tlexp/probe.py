"""Multinomial logistic regression on features, solved rather than trained."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

STEPS, TOLERANCE = 10_000, 1e-8


def logistic_path(
    features: Tensor, labels: Tensor, classes: int, cs: Iterable[float], weights: NDArray[np.float64] | None = None
) -> Iterator[nn.Linear]:
    """Yields, for each c, the layer that minimises |W|^2 / 2 + c * sum_i weights_i * cross-entropy_i.

    By L-BFGS in double precision, each from the solution before it. Features are shifted and scaled by one mean and one
    standard deviation over all of them, as in the probes of Kumar et al. (2022), so that c means about the same for
    every backbone; intercepts are not penalised.

    Args:
        features: (n, num_features).
        labels: (n,), every class among them.
        classes: how many there are.
        cs: inverse strengths of the penalty, small ones first.
        weights: (n,); None for 1.
    """
    from sklearn.linear_model import LogisticRegression

    x = features.double().numpy()
    shift, scale = x.mean(), x.std() or 1.0
    fit = LogisticRegression(tol=TOLERANCE, max_iter=STEPS, warm_start=True)
    for c in cs:
        fit.set_params(C=c).fit((x - shift) / scale, labels.numpy(), weights)
        coef, intercept = fit.coef_, fit.intercept_
        if classes == 2:  # one row for two classes: half of the difference each
            coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
        layer = nn.Linear(x.shape[1], classes)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(coef / scale))
            layer.bias.copy_(torch.from_numpy(intercept - coef.sum(1) * shift / scale))
        yield layer
