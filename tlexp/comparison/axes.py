"""What the axes of a sweep stand for: problems, methods that are compared on them, tuned values and repetitions."""

import re
from collections.abc import Collection, Mapping, Sequence

Values = tuple[tuple[str, str], ...]  # pairs of an axis and its value, written as on the command line

# Axes that repeat an experiment rather than change it.
REPLICATES = ("seed", "data.draw", "split_seed", "pretrain.seed")
PROBLEM_PREFIXES = ("data", "dataset@", "backbone")  # how axes begin that set another task
# Of these, ways to use the same labels.
SAME_TASK = ("data.val", "data.refit", "data.sampling", "data.unlabelled")
# Axes that can be methods, in the order of preference; of one kind all are taken.
METHOD_AXES = (("strategy", "terms"), ("backbone", "backbone.name"), ("alpha",))
BASELINES = {"strategy": ("scratch", "linear_probe"), "alpha": ("0", "0.0"), "terms": ("[]",)}
SELF_EXPLANATORY = ("strategy", "backbone", "data", "sweep")  # shown without the name of the axis
NO_TERMS = ("terms", "[]")  # shown only where nothing else is
ABSENT = "-"  # the value of an axis that another sweep of a comparison has


def method_axes(axes: Sequence[str], other_tests: Collection[str] = ()) -> list[str]:
    """Returns the axes whose values are compared unless the configuration says otherwise.

    Args:
        axes: of the sweep.
        other_tests: those of them, such as `experiment`, whose values turned out to have different test sets.
    """
    axes = [axis for axis in axes if axis not in other_tests]
    for kind in METHOD_AXES:
        if present := [axis for axis in axes if axis in kind]:
            return present
    others = [axis for axis in axes if axis not in REPLICATES and not is_problem(axis)]
    return others[:1] or [axis for axis in axes if axis not in REPLICATES and not changes_test_set(axis)][:1]


def changes_test_set(axis: str) -> bool:
    """Returns whether the values of an axis are tested on different examples, so that nothing is paired."""
    return axis in ("data", "data.test_fraction", "dataset@data.target") or axis.startswith("data.target.")


def is_problem(axis: str) -> bool:
    """Returns whether an axis sets another task rather than another way to solve it."""
    return axis.startswith(PROBLEM_PREFIXES) and axis not in SAME_TASK


def baseline_values(
    declared: str | None, methods: Sequence[str], values: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Returns the baseline by method axis: as declared; else scratch, a linear probe, alpha = 0, or the first value."""
    baseline = {}
    for axis in methods:
        known = [value for value in BASELINES.get(axis, ()) if value in values[axis]]
        baseline[axis] = known[0] if known else values[axis][0]
    if declared is not None:
        axis, _, value = declared.partition("=")
        baseline[axis] = value
    return baseline


def describe(values: Values) -> str:
    """Returns values to read: a strategy's alone, others with their axis, numbers with four significant digits."""
    present = [(axis, shorten_number(value)) for axis, value in values if value != ABSENT]
    present = [pair for pair in present if pair != NO_TERMS] or present
    return " ".join(value if axis in SELF_EXPLANATORY else f"{axis}={value}" for axis, value in present)


def shorten_number(value: str) -> str:
    """Returns a long decimal number with four significant digits; anything else unchanged."""
    return f"{float(value):.4g}" if re.fullmatch(r"-?\d+\.\d{5,}(e-?\d+)?", value) else value
