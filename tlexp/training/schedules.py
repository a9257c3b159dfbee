"""Learning-rate schedules as pure functions of the optimizer step; each multiplies every group's own rate."""

import math

from tlexp.errors import UsageError


def cosine(step: int, total: int, warmup: float = 0.1) -> float:
    """Rises linearly to 1 over the first `warmup` fraction of `total` steps, then falls along a cosine.

    The factor is exactly 1 at step round(warmup * total) and exactly 0 at step `total`, the one after the last.

    Raises:
        UsageError: for a warm-up outside [0, 1).
    """
    if step < (rise := _rise(total, warmup)):
        return (step + 1) / (rise + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def constant(step: int, total: int, warmup: float = 0.0) -> float:
    """Rises linearly over the first `warmup` fraction of `total` steps and stays at 1.

    Raises:
        UsageError: for a warm-up outside [0, 1).
    """
    rise = _rise(total, warmup)
    return (step + 1) / (rise + 1) if step < rise else 1.0


def slanted(step: int, total: int, warmup: float = 0.1, ratio: float = 32.0) -> float:
    """Rises linearly from 1 / ratio to 1 over the first `warmup` fraction of `total` steps and falls back the same way.

    The slanted triangular rate of Howard and Ruder (2018), their `cut_frac` being `warmup`.

    Raises:
        UsageError: for a warm-up outside [0, 1) or a ratio below 1.
    """
    if ratio < 1:
        raise UsageError(f"schedule.ratio={ratio}: the highest rate over the lowest, at least 1")
    rise = _rise(total, warmup)
    share = step / rise if step < rise else 1 - (step - rise) / max(1, total - rise)
    return (1 + share * (ratio - 1)) / ratio


def _rise(total: int, warmup: float) -> int:
    if not 0 <= warmup < 1:
        raise UsageError(f"schedule.warmup={warmup}: must be a fraction of all steps in [0, 1)")
    return round(warmup * total)
