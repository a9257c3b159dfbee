"""Reports and figures with long values and with names in any script."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from tests.helpers import QUICK, forked
from tlexp.comparison.tables import rich_table
from tlexp.reporting import fonts
from tlexp.reporting.console import WIDTH, print_table, shorten_paths
from tlexp.reporting.figures import confusion_matrix
from tlexp.reporting.fonts import OWN, make_readable

HAN = "\u6570\u636e"  # no font that comes with matplotlib has these
ONLY_STIX = "\u20dd"  # a circle that STIX has, and DejaVu Sans has not


def drawn(figure: Figure) -> list[str]:
    """Draws a figure, which warns of characters that no font has; returns its texts."""
    make_readable(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO())
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_classes_that_no_font_can_write_are_numbered():
    figure = confusion_matrix(np.eye(3, dtype=np.int64), ("cat", HAN, "na\u00efve"))
    texts = drawn(figure)
    assert {"cat", "class 1", "na\u00efve"} <= set(texts)
    assert HAN not in texts


def test_characters_that_another_font_has_are_drawn_with_it():
    figure = confusion_matrix(np.eye(2, dtype=np.int64), ("cat", f"a{ONLY_STIX}"))
    assert f"a{ONLY_STIX}" in drawn(figure)
    families = {tuple(text.get_fontfamily()) for text in figure.findobj(Text) if ONLY_STIX in text.get_text()}
    assert all(family[0] == OWN and len(family) == 2 for family in families)


def test_a_font_that_was_removed_ends_no_run(monkeypatch):
    for function in (fonts._files, fonts._characters, fonts._fonts_with):
        function.cache_clear()
    gone = font_manager.FontEntry("/nowhere/gone.ttf", "A Gone Font", "normal", "normal", 400, "normal", "scalable")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist, gone])
    assert "class 1" in drawn(confusion_matrix(np.eye(2, dtype=np.int64), ("cat", HAN)))
    monkeypatch.undo()
    for function in (fonts._files, fonts._characters, fonts._fonts_with):
        function.cache_clear()


def test_labels_that_differ_in_the_middle_only_are_numbered():
    names = tuple(f"{'a' * 30}{letter}{'z' * 30}" for letter in "xy")
    short = f"{'a' * 15}...{'z' * 15}"
    assert {f"{short} (0)", f"{short} (1)"} <= set(drawn(confusion_matrix(np.eye(2, dtype=np.int64), names)))


def test_titles_and_long_names_leave_room_for_the_figure():
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"data.target.root=/data/{'long/' * 20}photos {HAN}")
    axes.set_yticks([0, 1], ["x" * 200, "cat"])
    texts = drawn(figure)
    assert any(text.startswith("data.target.root=...") and text.endswith("photos ??") for text in texts)
    assert f"{'x' * 15}...{'x' * 15}" in texts
    assert axes.get_position().width > 0.3


def test_a_table_in_a_file_is_as_wide_as_it_needs_and_keeps_every_value():
    names = [f"value_{index}_{'of_some_length_' * 3}" for index in range(4)]
    frame = pd.DataFrame([{f"axis_{index}": name for index, name in enumerate(names)} | {"test": "90.1 [88.0, 92.2]"}])
    for width, terminal in ((WIDTH, False), (60, True)):
        console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
        print_table(console, rich_table("Comparison", frame))
        assert console.width == width
        text = console.file.getvalue()
        if terminal:  # folded into its columns, and nothing is left out
            assert "…" not in text
        else:
            assert all(name in text for name in names)


def test_paths_that_differ_in_front_only_are_shown_whole():
    paths = [f"/data/set{letter}/weights/resnet50_imagenet.safetensors" for letter in "AB"]
    console = Console(file=io.StringIO(), width=WIDTH)
    print_table(console, rich_table("Comparison", pd.DataFrame({"init": paths, "test": ["1", "2"]})))
    assert all(path in console.file.getvalue() for path in paths)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("data.target.root=/a/b/c", "data.target.root=/a/b/c"),
        ("/very/long/path/to/some/photographs/dslr", "...to/some/photographs/dslr"),
        ("strategy lr=0.1", "strategy lr=0.1"),
    ],
)
def test_long_paths_are_cut_to_their_ends(text, short):
    assert shorten_paths(text, 24) == short


def test_a_machine_with_slurm_gets_no_hint_about_srun(tmp_path, monkeypatch):
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    (tmp_path / "runs").mkdir()
    done = forked(*QUICK, "init=random", "epochs=1", "backbone=mlp", "tracking=none", cwd=Path(tmp_path, "runs"))
    assert done.returncode == 0, done.stderr
    assert "srun" not in done.stdout + done.stderr
