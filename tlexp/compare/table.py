"""A comparison as rows of text: for the terminal, for a file, for MLflow's description and for the page."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from tlexp.compare.judge import Against, Effect, Row, curves, equivalent_labels, labels_axis, ranks
from tlexp.compare.paired import Interval
from tlexp.compare.study import Study, shown

COSTS = ("trainable_parameters", "fit_seconds", "examples_per_second", "peak_memory_mib")
CLAIM = 10  # repetitions that a claim needs; with fewer the exact tests cannot reject in a family of any size


def heading(study: Study) -> list[str]:
    """Returns the columns of the main table."""
    base = shown(study.baseline_method)
    columns = [*study.problems, "method", "chosen by validation", "validation", "test", f"minus {base}", "p (Holm)"]
    return [*columns, "d_z", "better in", "oracle gap", "trials"]


def cells(study: Study, row: Row) -> list[str]:
    """Returns a row of the main table as text."""
    against = row.against
    better = "" if against is None else f"{better_in(study, against)} of {len(against.difference.values)}"
    return [
        *(value for _, value in row.problem),
        (shown(row.method) or study.name) + (" *" if row.leads else ""),
        shown(row.cell.tuned) or "-",
        f"{row.cell.score:.4f}",
        interval(study, row.test),
        "" if against is None else difference(study, against),
        "" if against is None else p_value(against.p_holm),
        "" if against is None or math.isnan(against.difference.d_z) else f"{against.difference.d_z:+.2f}",
        better,
        f"{study.scale * row.oracle_gap:.{study.digits}f}" if row.trials > 1 else "-",
        str(row.trials),
    ]


def cost_heading(study: Study) -> list[str]:
    """Returns the columns of the table of costs."""
    return [*study.problems, "method", "parameters that train", "seconds of a fit", "examples/s", "memory, MiB"]


def cost_cells(study: Study, row: Row) -> list[str]:
    """Returns what a method costs as text: means over repetitions."""
    numbers = [row.cell.mean(name) for name in COSTS]
    return [
        *(value for _, value in row.problem),
        shown(row.method) or study.name,
        count(numbers[0]),
        *(
            "" if math.isnan(number) else f"{number:,.3g}" if number < 100 else f"{number:,.0f}"
            for number in numbers[1:]
        ),
    ]


def effect_heading() -> list[str]:
    """Returns the columns of the table of alphas."""
    return ["method", "alpha", "test", "error minus that of alpha=0", "p (Holm)", "better in", "the source"]


def effect_cells(study: Study, effect: Effect) -> list[str]:
    """Returns a row of the table of alphas as text; the star is what validation chooses."""
    gap = effect.gap
    return [
        shown((*effect.problem, *effect.method)) or study.name,
        effect.alpha + (" *" if effect.chosen else ""),
        interval(study, effect.test),
        "" if gap is None else difference(study, gap),
        "" if gap is None else p_value(gap.p_holm),
        "" if gap is None else f"{sum(v < 0 for v in gap.difference.values)} of {gap.difference.difference.n}",
        effect.verdict,
    ]


def better_in(study: Study, against: Against) -> int:
    """Returns on how many repetitions a method is better than the baseline."""
    return sum(value > 0 if study.more_is_better else value < 0 for value in against.difference.values)


def interval(study: Study, found: Interval) -> str:
    """Returns a mean and its interval, or the mean alone where there is one repetition."""
    digits = study.digits
    mean = f"{study.scale * found.mean:.{digits}f}"
    if math.isnan(found.low):
        return f"{mean} (n=1)"
    return f"{mean} [{study.scale * found.low:.{digits}f}, {study.scale * found.high:.{digits}f}]"


def difference(study: Study, against: Against) -> str:
    """Returns a mean difference and its interval, with signs."""
    digits = study.digits
    found = against.difference.difference
    mean = f"{study.scale * found.mean:+.{digits}f}"
    if math.isnan(found.low):
        return mean
    return f"{mean} [{study.scale * found.low:+.{digits}f}, {study.scale * found.high:+.{digits}f}]"


def p_value(p: float) -> str:
    """Returns a p-value with two digits that count."""
    return "" if math.isnan(p) else f"{p:.2g}"


def count(number: float) -> str:
    """Returns a number of parameters as people say it."""
    if math.isnan(number):
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def notes(study: Study, rows: Sequence[Row]) -> list[str]:
    """Returns what a reader must know to read the table."""
    jobs = f"{study.points} points, {study.jobs} jobs"
    found = [
        f"{study.metric}{', %' if study.scale != 1 else ''}; mean and 95 % t interval over {_repeated(study)}; {jobs}"
    ]
    if study.missing:
        found.append(f"{study.missing} points have no result: they failed or are not done")
    chosen = f"chosen by the mean of {study.monitor} (its best value of each run); * what it prefers"
    found.append(chosen + ("; the oracle gap is what choosing by it costs on the test" if study.tuned else ""))
    tested = sum(row.against is not None and not math.isnan(row.against.p_holm) for row in rows)
    if tested:
        tests = f"{tested} paired t test{'s' if tested > 1 else ''}"
        family = f"a family of {tests} against {shown(study.baseline_method)}, adjusted after Holm"
        found.append(family)
    if len(study.replicates) > 1:
        crossed = " and ".join(study.replicates)
        found.append(f"{crossed} are crossed: intervals and tests take all pairs as independent, which is optimistic")
    if study.changed:
        rule = "asked after the runs, so that p-values are those of an exploration"
        found.append(f"{', '.join(study.changed)}: {rule}")
    found += [*_ranked(study, rows), *_labels_saved(study, rows)]
    trials = {shown(row.method): row.trials for row in rows}
    if len(set(trials.values())) > 1:
        listed = ", ".join(f"{name} {number}" for name, number in trials.items())
        found.append(f"unequal budgets (configurations with a result of their own): {listed}")
    fewest = min(len(row.cell.results) for row in rows)
    if fewest < CLAIM:
        rule = f"{CLAIM} are needed for a claim (the exact test of 5 pairs cannot go below p = .0625)"
        found.append(f"{fewest} repetition{'s' if fewest > 1 else ''}: an exploration; {rule}")
    return found


def _ranked(study: Study, rows: Sequence[Row]) -> list[str]:
    """Returns the order of the methods over data sets, where there are enough of them."""
    if (found := ranks(study, rows)) is None:
        return []
    methods, order = found
    listed = ", ".join(f"{shown(method)} {rank:.2f}" for method, rank in zip(methods, order.mean_ranks, strict=True))
    rule = f"Friedman p {order.p:.2g}, critical difference {order.critical_difference:.2f} (Nemenyi, 5 %)"
    return [f"mean ranks over data sets: {listed}; {rule}"]


def _labels_saved(study: Study, rows: Sequence[Row]) -> list[str]:
    """Returns how many labels the baseline needs for what the other methods reach, where the budget varies."""
    if (axis := labels_axis(study)) is None or not study.more_is_better:
        return []
    lines = curves(rows, axis)
    found = []
    for (rest, method), line in lines.items():
        reference = lines.get((rest, study.baseline_method))
        if reference is None or reference is line:
            continue
        needed = equivalent_labels(line, reference)
        known = [f"{n:g} as {other:.2g}" for (n, _), other in zip(line, needed, strict=True) if not math.isnan(other)]
        if known:
            base = shown(study.baseline_method)
            found.append(
                f"{shown((*rest, *method))}: {', '.join(known)} labels of {base} (interpolated in the logarithm)"
            )
    return found


def _repeated(study: Study) -> str:
    return " and ".join(study.replicates) or "one run"


def rich_table(study: Study, rows: Sequence[Row]) -> Table:
    """Returns the main table for the terminal, without what the page has room for."""
    table = Table(title=escape(f"Comparison: {study.name}"), title_justify="left")
    kept = [place for place, column in enumerate(heading(study)) if column not in ("validation", "d_z")]
    for place in kept:
        column = heading(study)[place]
        whole = column in ("method", "test") or column.startswith("minus")
        table.add_column(escape(column), no_wrap=whole, min_width=14 if column == "chosen by validation" else None)
    for row in rows:
        line = cells(study, row)
        table.add_row(*(escape(line[place]) for place in kept))
    return table


def rich_costs(study: Study, rows: Sequence[Row]) -> Table:
    """Returns the table of costs for the terminal."""
    table = Table(*map(escape, cost_heading(study)), title="Cost", title_justify="left")
    for row in rows:
        table.add_row(*map(escape, cost_cells(study, row)))
    return table


def rich_effects(study: Study, effects: Sequence[Effect]) -> Table:
    """Returns the table of alphas for the terminal."""
    table = Table(*effect_heading(), title="What the source does", title_justify="left")
    for effect in effects:
        table.add_row(*map(escape, effect_cells(study, effect)))
    return table


def markdown(study: Study, rows: Sequence[Row]) -> str:
    """Returns the main table for MLflow's description of the sweep."""
    lines = [heading(study), ["---"] * len(heading(study)), *(cells(study, row) for row in rows)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n\n".join([table, *notes(study, rows)])


def write_rows(file: Path, study: Study, rows: Sequence[Row]) -> None:
    """Writes the comparison as numbers, a line for each method on each problem."""
    lines = []
    for row in rows:
        line: dict[str, Any] = {**dict(row.problem), **dict(row.method), **dict(row.cell.tuned)}
        line |= {"n": row.test.n, "validation": row.cell.score, "mean": row.test.mean}
        line |= {"sd": _sd(row), "low": row.test.low, "high": row.test.high}
        tests = sorted(row.cell.tests.values())
        middle = (tests[(len(tests) - 1) // 2] + tests[len(tests) // 2]) / 2
        line |= {"median": middle, "min": tests[0]}
        if row.against is not None:
            found = row.against.difference
            line |= {"difference": found.difference.mean, "difference_low": found.difference.low}
            line |= {"difference_high": found.difference.high, "pairs": found.difference.n, "p": found.p}
            line |= {"p_holm": row.against.p_holm, "p_wilcoxon": row.against.p_wilcoxon, "d_z": found.d_z}
            line |= {"wins": better_in(study, row.against)}
        line |= {"oracle_gap": row.oracle_gap, "trials": row.trials, "preferred": row.leads}
        lines.append(line | {name: row.cell.mean(name) for name in COSTS})
    write_csv(file, lines)


def _sd(row: Row) -> float:
    values = list(row.cell.tests.values())
    if len(values) < 2:
        return math.nan
    return math.sqrt(sum((value - row.test.mean) ** 2 for value in values) / (len(values) - 1))


def write_points(file: Path, study: Study) -> None:
    """Writes every point with all that was measured of it."""
    lines = []
    for cell in study.cells:
        for rep, result in cell.results.items():
            place = {**dict(cell.problem), **dict(cell.method), **dict(cell.tuned), **dict(rep)}
            lines.append({axis: place[axis] for axis in study.axes} | {"score": result.score} | dict(result.metrics))
    write_csv(file, lines)


def write_csv(file: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Writes lines that may have different columns; those of the first come first."""
    columns = list(dict.fromkeys(name for line in lines for name in line))
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(lines)
