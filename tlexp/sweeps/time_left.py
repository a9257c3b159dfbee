"""How long the rest of a sweep takes, by the jobs that are most alike: a probe is no guide to a full fine-tuning."""

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import mean

from tlexp.comparison.axes import REPLICATES

Kind = frozenset[tuple[str, str]]  # the values of a job but for those that repeat it
MOST_KINDS = 200  # that are looked at, so that an estimate takes no time in a sweep of thousands


class TimeLeft:
    """Estimates the duration of jobs from those that have ended."""

    def __init__(self) -> None:
        self._ended: dict[Kind, list[float]] = {}

    def add(self, values: Mapping[str, str], seconds: float) -> None:
        """Takes account of a job with these values of the axes."""
        kind = _kind(values)
        self._ended.setdefault(kind, []).append(seconds)
        while len(self._ended) > MOST_KINDS:
            del self._ended[next(iter(self._ended))]

    def seconds(self, jobs: Iterable[Mapping[str, str]]) -> float:
        """Returns the time of some jobs: for each, the mean of those that share the most values with it.

        Seeds and draws do not count. Without any job that has ended it is NaN.
        """
        counts = Counter(_kind(values) for values in jobs)
        if not self._ended or not counts:
            return float("nan")
        # Of very many kinds some stand for all.
        some = list(counts)[:: max(1, len(counts) // MOST_KINDS)]
        total = sum(counts[kind] * self._one(kind) for kind in some)
        return total * counts.total() / sum(counts[kind] for kind in some)

    def _one(self, kind: Kind) -> float:
        if kind in self._ended:
            return mean(self._ended[kind])
        shared = {other: len(kind & other) for other in self._ended}
        most = max(shared.values())
        return mean(time for other, times in self._ended.items() if shared[other] == most for time in times)

    def in_words(self, jobs: Iterable[Mapping[str, str]]) -> str:
        """Returns the time of some jobs as it is shown; empty where nothing is known."""
        if not self._ended:
            return ""
        minutes = self.seconds(jobs) / 60
        return f" (about {minutes:.0f} min left)" if minutes >= 1 else " (less than a minute left)"


def _kind(values: Mapping[str, str]) -> Kind:
    return frozenset((axis, value) for axis, value in values.items() if axis not in REPLICATES)
