"""How long the rest of a sweep takes, by the jobs that are most alike: a probe is no guide to a full fine-tuning."""

from collections.abc import Iterable, Mapping
from statistics import mean

from tlexp.comparison.axes import REPLICATES


class TimeLeft:
    """Estimates the duration of jobs from those that have ended."""

    def __init__(self) -> None:
        self._ended: list[tuple[set[tuple[str, str]], float]] = []

    def add(self, values: Mapping[str, str], seconds: float) -> None:
        """Takes account of a job with these values of the axes."""
        self._ended.append((_items(values), seconds))

    def seconds(self, jobs: Iterable[Mapping[str, str]]) -> float:
        """Returns the time of some jobs: for each, the mean of those that share the most values with it.

        Seeds and draws do not count. Without any job that has ended it is NaN.
        """
        return sum(self._one(values) for values in jobs) if self._ended else float("nan")

    def _one(self, values: Mapping[str, str]) -> float:
        shared = [len(_items(values) & other) for other, _ in self._ended]
        return mean(seconds for (_, seconds), count in zip(self._ended, shared, strict=True) if count == max(shared))

    def in_words(self, jobs: Iterable[Mapping[str, str]]) -> str:
        """Returns the time of some jobs as it is shown; empty where nothing is known."""
        if not self._ended:
            return ""
        minutes = self.seconds(jobs) / 60
        return f" (about {minutes:.0f} min left)" if minutes >= 1 else " (less than a minute left)"


def _items(values: Mapping[str, str]) -> set[tuple[str, str]]:
    return {(axis, value) for axis, value in values.items() if axis not in REPLICATES}
