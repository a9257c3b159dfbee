"""Multinomial logistic regression on features, solved rather than trained."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MAX_ITERATIONS = 10_000
PATH_TOLERANCE, FINAL_TOLERANCE = 1e-4, 1e-10  # gradients at which a path continues and a solution is accepted
NEWTON_LIMIT = 3000  # unknowns up to which Newton's method, whose memory grows with their square, is affordable


class LogisticRegressionSolver:
    """Solves  min |W|^2 / 2 + c * sum_i weights_i * cross-entropy_i  in double precision; intercepts are not penalised.

    Features are shifted and scaled by one mean and one standard deviation over all of them, as in the probes of Kumar
    et al. (2022), so that c means about the same for every backbone.

    Args:
        features: (n, num_features).
        labels: (n,), every class among them.
        classes: how many there are.
        weights: (n,); None for 1.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, classes: int, weights: NDArray[np.float64] | None = None
    ) -> None:
        x = features.double().numpy()
        self.shift, self.scale = x.mean(), x.std() or 1.0
        self.x, self.labels, self.classes, self.weights = (x - self.shift) / self.scale, labels, classes, weights

    def path(self, cs: Iterable[float]) -> Iterator[nn.Linear]:
        """Yields a layer for each c, small ones first, by L-BFGS from the one before: close enough to choose by."""
        fit = self._solver("lbfgs", PATH_TOLERANCE)
        for c in cs:
            yield self._fitted(fit, c)

    def at(self, c: float) -> nn.Linear:
        """Returns the layer for one c, solved to convergence."""
        small = (self.x.shape[1] + 1) * self.classes <= NEWTON_LIMIT
        return self._fitted(self._solver("newton-cholesky" if small else "lbfgs", FINAL_TOLERANCE), c)

    def _solver(self, kind: str, tolerance: float) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(solver=kind, tol=tolerance, max_iter=MAX_ITERATIONS, warm_start=True)

    def _fitted(self, fit: Any, c: float) -> nn.Linear:
        # For two classes scikit-learn penalises the difference of their rows, which is twice the penalty of both.
        fit.set_params(C=2 * c if self.classes == 2 else c).fit(self.x, self.labels.numpy(), self.weights)
        coef, intercept = fit.coef_, fit.intercept_
        if self.classes == 2:  # one row for two classes: half of the difference each
            coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
        layer = nn.Linear(self.x.shape[1], self.classes)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(coef / self.scale))
            layer.bias.copy_(torch.from_numpy(intercept - coef.sum(1) * self.shift / self.scale))
        return layer
