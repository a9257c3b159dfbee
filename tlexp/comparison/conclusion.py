"""What a careful reader concludes from a comparison, in a few sentences: what is better, how surely, and what chose."""

from collections.abc import Sequence

from tlexp.comparison.analysis import MethodResult, PairedContrast, SourceEffect
from tlexp.comparison.axes import describe
from tlexp.comparison.results import SweepResults
from tlexp.comparison.tables import format_difference, format_interval, format_p

MOST_NAMED = 4  # methods in one sentence; the table has all


def conclusion(results: SweepResults, rows: Sequence[MethodResult], effects: Sequence[SourceEffect]) -> str:
    """Returns for each problem what differs from the baseline, where the source hurts or helps, and what chose.

    Each sentence is a line, and each problem a paragraph.
    """
    sentences = []
    for problem in dict.fromkeys(row.problem for row in rows):
        of_problem = [row for row in rows if row.problem == problem]
        said = [*_differences(results, of_problem), *_sources(results, [e for e in effects if e.problem == problem])]
        said += _choice(results, of_problem)
        prefix = f"{describe(problem)}: " if problem else ""
        sentences.append(prefix + "\n".join(said))
    return "\n\n".join(sentences)


def _differences(results: SweepResults, rows: Sequence[MethodResult]) -> list[str]:
    """Returns which methods are better than the baseline, worse, or neither, with the sizes of what is sure."""
    baseline = describe(results.baseline_method)
    compared = {row: row.contrast for row in rows if row.contrast is not None}
    if not compared:
        best = next((row for row in rows if row.best), rows[0])
        name = describe((*best.method, *best.config.tuned)) or results.name
        return [f"{name}: test {format_interval(results, best.test)}."]
    verdicts = {row: c.verdict(results.rope, results.higher_is_better) for row, c in compared.items()}
    if results.methods == ["alpha"]:  # whose rows are the source's effects
        return []
    sentences = []
    for verdict in ("better", "worse"):
        found = [row for row in compared if verdicts[row] == verdict]
        if found:
            sizes = [f"{_name(row, results)} ({_size(results, compared[row])})" for row in found]
            sentences.append(f"{verdict.capitalize()} than {baseline}: {_listed(sizes, '; ')}.")
    if same := [_name(row, results) for row in compared if verdicts[row] == "equivalent"]:
        sentences.append(f"Practically equal to {baseline}, within {_rope(results)}: {_listed(same)}.")
    undecided = [row for row in compared if verdicts[row] in ("undecided", "")]
    if undecided:
        several = any(verdicts[row] for row in undecided)
        reason = "Not told apart from" if several else "One repetition says nothing sure about the difference to"
        differences = [f"{_name(row, results)} ({format_difference(results, compared[row])})" for row in undecided]
        sentences.append(f"{reason} {baseline}: {_listed(differences)}.")
    return sentences


def _sources(results: SweepResults, effects: Sequence[SourceEffect]) -> list[str]:
    """Returns with which alphas the source hurts and with which it helps; that neither is sure, where there is none."""
    gaps = {effect: effect.gap for effect in effects if effect.gap is not None}
    sentences = []
    for verdict in ("hurts", "helps"):
        if found := [effect for effect in gaps if effect.verdict == verdict]:
            sizes = [f"{_of_effect(effect)} (error {_size(results, gaps[effect])})" for effect in found]
            sentences.append(f"The source {verdict} with {_listed(sizes)}.")
    if maybe := [effect for effect in gaps if effect.verdict in ("may hurt", "may help")]:
        listed = _listed([f"{_of_effect(effect)} {effect.verdict}" for effect in maybe])
        sentences.append(f"Not sure after adjustment: {listed}.")
    if same := [_of_effect(effect) for effect in gaps if effect.verdict == "equivalent"]:
        sentences.append(f"Practically without effect, within {_rope(results)}: {_listed(same)}.")
    if gaps and not sentences:
        sentences.append("No effect of the source is told apart from none.")
    return sentences


def _choice(results: SweepResults, rows: Sequence[MethodResult]) -> list[str]:
    """Returns what validation recommends, and on how many examples it rests."""
    configs = [config for row in rows for config in results.by_method[row.problem, row.method]]
    if len(configs) < 2:
        return []
    choice = results.choice(configs)
    examples = choice.best.mean("val_examples")
    each = f" of {examples:.0f} examples" if examples == examples else ""
    on = f"{choice.draws} validation sets{each}" if choice.draws > 1 else f"one validation set{each}"
    name = describe((*choice.best.method, *choice.best.tuned)) or results.name
    if choice.preferred is not None:
        return [f"Validation prefers {name} to all others, on {on}."]
    tests = [config.interval.mean for config in choice.members]
    low, high = (f"{results.scale * value:.{results.digits}f}" for value in (min(tests), max(tests)))
    if choice.draws < 2:
        said = f"Validation recommends nothing: all runs share {on}"
    else:
        some = len(choice.members) < len(configs)
        which = f"{len(choice.members)} of {len(configs)}" if some else f"the {len(configs)}"
        said = f"Validation does not tell {which} configurations apart, on {on}"
    return [f"{said}; the tests of what it may choose range from {low} to {high}."]


def _name(row: MethodResult, results: SweepResults) -> str:
    return describe((*row.method, *row.config.tuned)) or results.name


def _of_effect(effect: SourceEffect) -> str:
    name = describe(effect.method)
    return f"{name} alpha={effect.alpha}" if name else f"alpha={effect.alpha}"


def _size(results: SweepResults, contrast: PairedContrast) -> str:
    p = format_p(contrast.p_holm)
    return f"{format_difference(results, contrast)} {results.unit}".strip() + (f", p {p}" if p else "")


def _rope(results: SweepResults) -> str:
    value = results.scale * results.rope
    return f"{value:g} {'point' if value == 1 else 'points'}" if results.unit else f"{value:g}"


def _listed(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return separator.join(names[:MOST_NAMED]) + more
