"""The domains of a configuration: read, filtered and split."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tlexp.config.instantiate import build
from tlexp.config.schema import Config
from tlexp.data.cache import Cache
from tlexp.data.domains import Domain
from tlexp.data.quality.scan import facts
from tlexp.data.samples import Samples, Skipped
from tlexp.data.splits import split
from tlexp.errors import UsageError


def open_cache(config: Config) -> Cache:
    """Returns the cache that all jobs of a configuration share."""
    return Cache(Path(config.cache), int(config.cache_gb * 1e9))


def read_domain(config: Config, role: str, cache: Cache | None = None) -> Domain:
    """Reads and splits one role's data; the label budget is the target's.

    Args:
        config: the run's configuration.
        role: `target`, `source` or `shifted`.
        cache: remembers which files can be read.

    Raises:
        UsageError: for data that cannot be read or split.
    """
    node = getattr(config.data, role)
    try:
        samples: Samples = build("data", node)
    except UsageError as error:  # a reader does not know whose options it was given
        key = str(error).partition("=")[0]
        raise (UsageError(f"data.{role}.{error}") if key in node else error) from error
    if samples.on_bad == "skip" and samples.inputs.kind == "images":
        samples = skip_unreadable(samples, cache)
    data = config.data
    options: dict[str, Any] = {"given": samples.given, "groups": samples.groups}
    make_split = partial(split, samples.labels, config.split_seed, data.test_fraction, **options)
    if role != "target":
        return Domain(samples, make_split())
    return Domain(samples, make_split(shots=data.shots, fraction=data.fraction, draw=data.draw, val=data.val))


def skip_unreadable(samples: Samples, cache: Cache | None) -> Samples:
    """Leaves out images that cannot be read: before the split, so that all runs share their splits.

    Raises:
        UsageError: where a class has no image left.
    """
    inputs: Any = samples.inputs
    bad = {index: fact.error for index, fact in enumerate(facts(inputs, cache)) if fact.error}
    mask = np.ones(len(samples.labels), bool)
    mask[list(bad)] = False
    readable = samples.filter(mask)
    if empty := [name for label, name in enumerate(samples.classes) if label not in readable.labels]:
        raise UsageError(f"data set {samples.name}: none of the images of class {empty[0]} can be read")
    skipped = (Skipped(inputs.location(index), reason) for index, reason in bad.items())
    return replace(readable, skipped=(*samples.skipped, *skipped))
