"""What a person sees of data sets: the tables of `tlexp-check-data`."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tlexp.data.domains import Domain
from tlexp.data.quality.scan import Facts
from tlexp.data.samples import SPLITS, Samples
from tlexp.reporting.console import print_table

LIMIT = 15  # rows shown of a long list


def facts_table(title: str, facts: Mapping[str, object]) -> Table:
    """Returns a table of names and values."""
    table = Table(title=escape(title), title_justify="left", show_header=False)
    for key, value in facts.items():
        table.add_row(key, escape(str(value)))
    return table


def print_data_report(
    domains: Mapping[str, Domain],
    facts: Mapping[str, Sequence[Facts]],
    warnings: Sequence[str],
    console: Console,
) -> None:
    """Prints what is in each domain, class by class, what was left out, and what to look at."""
    for role, domain in domains.items():
        samples, sizes = domain.samples, domain.sizes()
        unused = len(samples.labels) - sum(sizes.values())
        rows = {
            "examples": f"{len(samples.labels):,} {samples.inputs.kind} of {len(samples.classes)} classes",
            "splits": ", ".join(f"{split} {size:,}" for split, size in sizes.items()) + f", unused {unused:,}",
            "hash of the splits": domain.split_hash,
            "sizes": _sizes(facts[role], samples.inputs.kind),
            "skipped": _skipped(samples),
        }
        title = f"{role}: {samples.name}" + (f", {len(samples.skipped):,} skipped" if samples.skipped else "")
        console.print(facts_table(title, {key: value for key, value in rows.items() if value}))
        print_table(console, class_table(domain))
    console.print(*warnings or ["no warnings"], sep="\n", markup=False)


def _skipped(samples: Samples) -> str:
    """Returns what was left out, a line each, by its path relative to the data set's folder."""
    root = f"{getattr(samples.inputs, 'root', '')}/"
    lines = [f"{location.removeprefix(root)}: {reason}" for location, reason in samples.skipped[:LIMIT]]
    return "\n".join(lines + ["..."] * (len(samples.skipped) > LIMIT))


def _sizes(facts: Sequence[Facts], kind: str) -> str:
    measured = {"characters": [fact.width for fact in facts]}
    if kind == "images":
        measured = {"width": [fact.width for fact in facts], "height": [fact.height for fact in facts]}
    lines = [f"{name} {min(v):,} to {max(v):,}, median {np.median(v):,.0f}" for name, v in measured.items() if v]
    modes = Counter(fact.mode for fact in facts if fact.mode)
    return "; ".join(lines + [", ".join(f"{count:,} {mode}" for mode, count in modes.most_common())] * bool(modes))


def class_table(domain: Domain) -> Table:
    """Returns the number of examples of each class in each split; of many classes the largest and the smallest."""
    table = Table("class", *SPLITS, "unused")
    classes = domain.samples.classes
    totals = np.bincount(domain.samples.labels, minlength=len(classes))
    counts = np.stack([np.bincount(domain.labels(split), minlength=len(classes)) for split in SPLITS], 1)
    order = np.argsort(-totals, kind="stable") if len(classes) > 2 * LIMIT else np.arange(len(classes))
    for index, label in enumerate(order):
        if len(classes) > 2 * LIMIT and LIMIT <= index < len(classes) - LIMIT:
            if index == LIMIT:
                table.add_row("...", *[""] * 4)
            continue
        row = [*counts[label], totals[label] - counts[label].sum()]
        table.add_row(escape(classes[label]), *(f"{count:,}" for count in row))
    return table
