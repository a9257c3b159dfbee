"""Mistakes of typing: one line that says what was meant."""

import pytest

import tlexp
from tests.helpers import compose
from tlexp.errors import UsageError
from tlexp.runs.build import build


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("learning_rate=0.1", "lr"),
        ("alhpa=0", "alpha"),
        ("epoch=3", "epochs"),
        ("data.shot=5", "data.shots"),
        ("backbone.nme=x", "backbone.name"),
        ("data.target.class=[1,2]", "data.target.classes"),
        ("strategy.backbone_lr=0.1", "strategy.backbone_lr_mult"),
        ("weight_decay=0", "optimizer.weight_decay"),
        ("objective.mixp=0.1", "objective.mixup"),
    ],
)
def test_the_option_that_was_meant_is_named(wrong, meant):
    name = wrong.partition("=")[0]
    with pytest.raises(UsageError, match=rf"'{name}': no such option; did you mean {meant}\? --help lists them"):
        compose(wrong)


def test_an_option_of_another_choice_is_said_to_be_one():
    choices = r"it is one of dataset@data\.source=hf, dataset@data\.source=image_folder, .*image_table, .*text_table"
    with pytest.raises(UsageError, match=rf"'data.source.root': no such option; {choices}; --help lists them"):
        compose("data.source.root=[A,B]")


def test_nothing_is_guessed_where_nothing_is_similar():
    with pytest.raises(UsageError, match="'quux': no such option; --help lists them"):
        compose("quux=1")


def test_a_comma_at_the_end_is_a_list_with_a_space(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"alpha=0,: ends with a comma; give values without spaces between them"):
        tlexp.sweep(["alpha=0,", "0.1"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("trainer.max_epochs=abc",), "trainer.max_epochs=abc: schedule and strategy need a number above 0"),
        (("optimizer.betas=[0.9]",), "optimizer: torch.optim.AdamW refuses its options: IndexError: list index out of"),
        (
            ("backbone=timm", "backbone.name=resnet18", "backbone.drop_path_rate=abc"),
            "backbone.name=resnet18: unsupported operand",
        ),
        (("data=images", "data.target.root=nowhere"), "data.target.root=.*nowhere: no such folder"),
        (("data=text_table", "data.target.root=nowhere.csv"), r"nowhere\.csv: no such file"),
    ],
)
def test_what_a_part_refuses_is_one_line(options, said, tmp_path):
    with pytest.raises(UsageError, match=said) as caught:
        build(compose("init=random", *options, root=tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("data.draw=-1",), "data.draw=-1: number of a draw, 0 or above"),
        (("data=images", "data.target.root=x", "data.source.root=[a,b]"), r"root=\['a', 'b'\] of a data set: one file"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        compose("init=random", *options)


def test_old_names_are_not_offered():
    with pytest.raises(UsageError, match="Could not find 'data/image'") as caught:
        compose("data=image")
    names = str(caught.value).split(": ")[-1].split()
    assert {"images", "named"} <= set(names)
    assert not {"folder", "pair", "tables"} & set(names)
