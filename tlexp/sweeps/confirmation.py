"""Confirming what a sweep has selected: on label draws and seeds that the selection has not seen."""

from collections.abc import Mapping, Sequence
from typing import Any

from tlexp.sweeps.points import Composer, GridPoint

FRESH = ("data.draw", "seed")  # what every confirming run has of its own


def confirming_points(
    manifest: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
    points: Sequence[GridPoint],
    composer: Composer,
    count: int,
) -> list[GridPoint]:
    """Returns the selected configuration of each method on each problem, `count` times, on fresh draws and seeds.

    The maximum over many noisy validation scores is partly luck, and so is the test of the runs that had it. Tests of
    fresh runs are free of it (Cawley and Talbot 2010).

    Args:
        manifest: of the sweep.
        metrics: of its finished jobs, by key.
        points: of the sweep.
        composer: of its configurations.
        count: of repetitions.
    """
    from tlexp.comparison.analysis import compare_methods  # scipy only where there is something to compare
    from tlexp.comparison.results import SweepResults

    keys = {axis.name: axis.key for axis in composer.spec.axes}
    draw = 1 + max(point.config.data.draw for point in points)
    seed = 1 + max(point.config.seed for point in points)
    kept = {name: points[0].values[name] for name in keys if name in points[0].values}
    confirming = []
    for row in compare_methods(SweepResults(manifest, metrics)):
        chosen = {**kept, **dict(row.problem), **dict(row.method), **dict(row.config.tuned)}
        for number in range(count):
            fresh = {"data.draw": str(draw + number), "seed": str(seed + number)}
            values = {keys.get(name, name): value for name, value in {**chosen, **fresh}.items()}
            confirming.append(composer.point(values))
    return confirming


def confirming_manifest(manifest: Mapping[str, Any], points: Sequence[GridPoint]) -> dict[str, Any]:
    """Returns the manifest of the confirming runs, which are compared as the sweep's own."""
    axes = [*(axis for axis in manifest["axes"] if axis not in FRESH), *FRESH]
    from tlexp.comparison.results import compared_axes

    asked = [{"values": point.values, "key": point.key, "draw": point.draw} for point in points]
    changed: dict[str, Any] = {"name": f"{manifest['name']}-confirmed", "axes": axes, "points": asked}
    axis, _, value = (manifest["baseline"] or "").partition("=")
    if axis not in compared_axes(manifest) or value not in {point.values.get(axis) for point in points}:
        changed["baseline"] = None  # it was tuned, or none of its runs has a result
    return {**manifest, **changed, "searched": False}
