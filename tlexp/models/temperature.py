"""Temperature scaling of logits."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

RANGE = (0.05, 20.0)


def temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Returns T in [0.05, 20] for which logits / T have the smallest negative log-likelihood (Guo et al. 2017).

    Args:
        logits: (n, classes).
        labels: (n,).
    """

    def loss(log_t: float) -> float:
        log_p = log_softmax(logits.astype(np.float64) / np.exp(log_t), axis=1)
        return -float(log_p[np.arange(len(labels)), labels].mean())

    return float(
        np.exp(minimize_scalar(loss, bounds=tuple(np.log(RANGE)), method="bounded", options={"xatol": 1e-8}).x)
    )
