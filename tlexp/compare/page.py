"""The comparison as one page that needs nothing beside itself."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tlexp import __version__
from tlexp.compare.judge import Effect, Row
from tlexp.compare.study import Study, shown
from tlexp.compare.table import (
    cells,
    cost_cells,
    cost_heading,
    difference,
    effect_cells,
    effect_heading,
    heading,
    interval,
    notes,
)

CAPTIONS = {
    "methods": (
        "Methods at a glance",
        "Mean and 95 % interval over repetitions, at what validation chose.",
    ),
    "alpha_curve": (
        "The weight of the source",
        "Test values against alpha / (1 + alpha), from target only to the source alone, with 95 % bands. The star is"
        " the alpha that validation chooses; the other points are shown, not chosen from.",
    ),
    "negative_transfer": (
        "Negative transfer",
        "Error with the source's loss minus error without it, paired by repetition. An interval right of 0 says that"
        " the source hurts.",
    ),
    "label_efficiency": ("Label efficiency", "What each method makes of more labels, with 95 % bands."),
    "heat_map": (
        "Gain over the baseline",
        "Mean paired difference on each problem; a star where the test rejects after Holm's adjustment.",
    ),
    "cost": (
        "Cost and result",
        "What a fit takes on the machine of the runs; shared machines are noisy.",
    ),
}


def answer(study: Study, rows: Sequence[Row]) -> str:
    """Returns the outcome in a sentence for each problem."""
    sentences = []
    for problem in dict.fromkeys(row.problem for row in rows):
        best = next(row for row in rows if row.problem == problem and row.leads)
        where = f"On {shown(problem)}, validation" if problem else "Validation"
        name = shown((*best.method, *best.cell.tuned)) or study.name
        said = f"{where} prefers {name}: test {interval(study, best.test)}"
        base = shown(study.baseline_method)
        if best.against is not None:
            said += f", {f'{difference(study, best.against)} {study.unit}'.strip()} against {base}"
        sentences.append(said.strip() + ".")
        top = next(row for row in rows if row.problem == problem)
        if top is not best:
            name = shown((*top.method, *top.cell.tuned))
            sentences.append(f"The best on the test, for information, is {name}: {interval(study, top.test)}.")
    return " ".join(sentences)


def question(study: Study) -> str:
    """Returns what was varied."""
    parts = [f"{axis} in {', '.join(study.values[axis])}" for axis in study.axes if axis not in study.replicates]
    repeated = [f"{len(study.values[axis])} values of {axis}" for axis in study.replicates]
    return "Varied: " + "; ".join([*parts, *repeated]) + "."


def page(study: Study, rows: Sequence[Row], effects: Sequence[Effect], pictures: Mapping[str, Path]) -> str:
    """Returns the page; `pictures` are SVG files by name."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    drawn = [
        {
            "name": name,
            "title": CAPTIONS[name][0],
            "caption": CAPTIONS[name][1],
            "data": base64.b64encode(file.read_bytes()).decode(),
        }
        for name, file in pictures.items()
    ]
    return environment.get_template("page.html").render(
        name=study.name,
        question=question(study),
        answer=answer(study, rows),
        heading=heading(study),
        rows=[{"leads": row.leads, "cells": cells(study, row)} for row in rows],
        notes=notes(study, rows),
        effect_heading=effect_heading(),
        effects=[effect_cells(study, effect) for effect in effects],
        cost_heading=cost_heading(study),
        costs=[cost_cells(study, row) for row in rows],
        figures=drawn,
        version=__version__,
    )
