"""Classes that look the same, within a data set and between the domains of a run."""

import time
import unicodedata

import pytest

from tests.helpers import compose, tree
from tlexp.data.class_names import difference, nearly_the_same, similar_names
from tlexp.data.quality.leakage import find_warnings
from tlexp.data.readers.folder import image_folder
from tlexp.errors import UsageError
from tlexp.runs.build import build

ZERO_WIDTH = "\N{ZERO WIDTH SPACE}"


@pytest.mark.parametrize(
    "names",
    [
        ("caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")),
        ("dog", f"dog{ZERO_WIDTH}"),
        ("dog", "\N{ZERO WIDTH NO-BREAK SPACE}dog"),
        ("dog", "\N{FULLWIDTH LATIN SMALL LETTER D}og"),
        ("Alarm_Clock", "alarm clock"),
        ("T-shirt", "t shirt"),
        ("a b", "a\N{NO-BREAK SPACE}b"),
        ("Stra\u00dfe", "STRASSE"),
    ],
)
def test_names_that_look_the_same_are_shown_so_that_they_can_be_told_apart(names):
    (note,) = similar_names([*names, "other"])
    first, second = note.removeprefix("the classes ").removesuffix(" differ in case, spaces or signs only").split(", ")
    assert first != second
    assert unicodedata.normalize("NFKC", first) == first
    assert [eval(first), eval(second)] == list(names)


def test_names_that_differ_are_left_alone():
    assert similar_names(["1", "-1", "10", "1.0", "a", "ab", "_", "__", "C", "C++", "C#", "\u00e9", "e"]) == []
    assert nearly_the_same(["a", "b"], ["a", "b"]) == nearly_the_same(["a"], ["b"]) == ""
    assert difference(["a", "b"], ["b", "a"]) == "they are in another order; give both the same classes="
    assert difference(["a", "b"], ["b", *"cdef"]) == "only the target has a; only the source has c, d, e and 1 more"


def test_thousands_of_names_are_compared_in_no_time():
    before = time.process_time()
    numbers, words = ([f"{kind}{index:08}" for index in range(20_000)] for kind in ("n", "word"))
    assert nearly_the_same(numbers, words) == ""
    assert difference(list(map(str, range(20_000))), ["x"]).endswith("and 19997 more; only the source has x")
    assert time.process_time() - before < 10  # 0.1 s


def test_domains_whose_classes_look_the_same_are_told_why_there_are_two_heads(tmp_path):
    target = tree(tmp_path / "web", **{"Alarm_Clock": 10, "bike": 10})
    source = tree(tmp_path / "photos", **{"alarm clock": 10, "bike": 10})
    options = (f"data.target.root={target}", f"data.source.root={source}", "data=images", "init=random", "alpha=1")
    options += ("batch_size=4",)
    alike = "'Alarm_Clock' and 'alarm clock' differ in case, spaces or signs only; rename one of each pair"
    components = build(compose(*options))
    notices = components.notices
    assert f"source and target have different classes: {alike}" in find_warnings(components.data.domains, [], [])
    assert f"source and target have a head each, since their classes differ: {alike}" in notices
    with pytest.raises(UsageError, match=f"head=one: source and target have different classes: {alike}; use head=two"):
        build(compose(*options, "head=one"))
    assert not any("head each" in notice for notice in build(compose(*options, "head=two")).notices)


def test_a_class_that_is_written_in_another_way_is_shown_beside_the_one_that_is_there(tmp_path):
    other = unicodedata.normalize("NFD", "caf\u00e9")
    folder = tree(tmp_path / "shops", train={"caf\u00e9": 2, "bar": 2}, test={other: 1, "bar": 1})
    with pytest.raises(UsageError, match=r"outside the training split only; 'cafe\\u0301' and 'caf\u00e9' differ"):
        image_folder(str(folder))
    with pytest.raises(UsageError, match="'Bar' and 'bar' differ in case"):
        image_folder(str(tree(tmp_path / "more", bar=2, inn=2, pub=2)), classes=["Bar", "inn"])
