"""Readers of folders and tables: labels as they are written, given splits kept, and mistakes named."""

import numpy as np
import pandas as pd
import pytest

from tests.helpers import FILES, compose, tree
from tlexp.data.readers.folder import image_folder
from tlexp.data.readers.tables import text_table
from tlexp.errors import UsageError
from tlexp.runs.build import build
from tlexp.runs.domains import read_domain


def test_a_folder_for_each_class(tmp_path):
    samples = image_folder(str(tree(tmp_path / "pets", dog=3, cat=2)))
    assert (samples.name, samples.classes, samples.labels.tolist()) == ("pets", ("cat", "dog"), [0, 0, 1, 1, 1])
    assert samples.given == {}
    assert [path.name for path in samples.inputs.paths] == ["0.png", "1.png", "0.png", "1.png", "2.png"]


def test_hidden_files_and_other_files_are_no_images(tmp_path):
    folder = tree(tmp_path / "pets", dog=2, cat=2)
    for name in (".DS_Store", "._1.png", "Thumbs.db", "notes.txt"):
        (folder / "dog" / name).write_bytes(b"x")
    tree(folder, **{".ipynb_checkpoints": 1})
    tree(folder / "dog", **{".cache": 1})
    samples = image_folder(str(folder))
    assert (samples.classes, len(samples.labels)) == (("cat", "dog"), 4)


def test_given_splits_are_kept_and_missing_ones_are_cut(tmp_path):
    folder = tree(tmp_path / "pets", train={"dog": 10, "cat": 10}, test={"dog": 2, "cat": 1})
    samples = image_folder(str(folder))
    assert {part: len(indices) for part, indices in samples.given.items()} == {"train": 20, "test": 3}
    run = ("data=images", f"data.target.root={folder}", "init=random", "backbone.size=16", "alpha=0")
    for budget, sizes in (((), (16, 4, 3)), (("data.shots=5",), (8, 2, 3)), (("data.val=large",), (16, 4, 3))):
        split = read_domain(compose(*run, *budget), "target").split
        assert (len(split.train), len(split.val), len(split.test)) == sizes
        assert set(split.test) == set(samples.given["test"])
        assert not set(split.train) & set(split.val)


def test_a_given_validation_split_validates_unless_a_budget_pays_for_it(tmp_path):
    components = {"train": {"dog": 10, "cat": 10}, "val": {"dog": 4, "cat": 4}, "test": {"dog": 2, "cat": 2}}
    folder = tree(tmp_path / "pets", **components)
    given = set(image_folder(str(folder)).given["val"])
    run = ("data=images", f"data.target.root={folder}", "init=random", "alpha=0")
    for budget, train, uses_given in (
        ((), 20, True),
        (("data.shots=5", "data.val=large"), 10, True),
        (("data.shots=5",), 8, False),
    ):
        split = read_domain(compose(*run, *budget), "target").split
        assert len(split.train) == train
        assert (set(split.val) == given) == uses_given
        assert not uses_given or not set(split.val) & set(split.train)


def test_folders_of_splits_may_have_other_names(tmp_path):
    folder = tree(tmp_path / "pets", train={"dog": 5, "cat": 5}, val={"dog": 2, "cat": 2})
    samples = image_folder(str(folder), test="val", val=None)
    assert sorted(samples.given) == ["test", "train"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "root=null: an image folder needs data.target.root=FOLDER"),
        (lambda folder: folder / "nowhere", "nowhere: no such folder"),
        (lambda folder: tree(folder, dog=0), "holds no examples"),
        (lambda folder: tree(folder, dog=3), r"only one class \(dog\); need at least two"),
        (
            lambda folder: tree(folder, train={"dog": 1, "cat": 1}, test={"Cat": 1}),
            "class Cat occurs outside the training split only; 'Cat' and 'cat' differ in case, spaces or signs only",
        ),
    ],
)
def test_folders_that_cannot_be_learned_from_are_named(tmp_path, make, message):
    root = make(tmp_path / "pets")
    with pytest.raises(UsageError, match=message):
        image_folder(root and str(root))


def test_a_table_may_be_any_of_four_formats(tmp_path):
    table = pd.read_csv(FILES / "letters.csv", dtype=str)
    table.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    table.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "t.parquet")
    expected = text_table(str(FILES / "letters.csv"))
    assert (expected.name, expected.classes, len(expected.labels)) == ("letters", ("0", "1", "2"), 300)
    for file in ("t.tsv", "t.jsonl", "t.parquet"):
        samples = text_table(str(tmp_path / file))
        assert samples.inputs.texts == expected.inputs.texts
        assert (samples.labels == expected.labels).all()


def test_labels_are_what_is_written(tmp_path):
    names = ["007", "NA", "None", "1.0", "nan", "true"]
    rows = [f'"text {index}, quoted",{name}' for index, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\ufefftext,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    samples = text_table(str(tmp_path / "t.csv"))
    assert samples.classes == tuple(sorted(names))
    assert samples.inputs.texts[0] == "text 0, quoted"


def test_tables_for_each_split_and_classes_to_keep(tmp_path):
    for part, rows in (("train", 6), ("test", 3)):
        lines = [f"{part} {index},{'abc'[index % 3]}" for index in range(rows)]
        (tmp_path / f"{part}.csv").write_text("say,kind\n" + "\n".join(lines) + "\n")
    columns = {"text": "say", "label": "kind"}
    samples = text_table(str(tmp_path), "mine", train="train.csv", test="test.csv", **columns)
    assert samples.given["test"].tolist() == [6, 7, 8]
    some = text_table(str(tmp_path), "mine", train="train.csv", test="test.csv", **columns, classes=["c", "a"])
    assert some.classes == ("c", "a")
    assert [some.inputs.texts[index] for index in some.given["test"]] == ["test 0", "test 2"]
    assert some.labels.tolist() == [1, 0, 1, 0, 1, 0]


def test_a_class_outside_the_training_part_may_be_left_out(tmp_path):
    folder = tree(tmp_path / "pets", train={"dog": 5, "cat": 5}, test={"dog": 1, "cat": 1, "cow": 1})
    samples = image_folder(str(folder), classes=["dog", "cat"])
    assert (samples.classes, len(samples.given["test"])) == (("dog", "cat"), 2)
    assert image_folder(str(folder / "train"), train=None).given == {}


def test_a_given_test_split_needs_its_training_split(tmp_path):
    with pytest.raises(UsageError, match=r"test=b.csv val=None: given splits need train= as well"):
        text_table(str(FILES / "letters.csv"), test="b.csv")


def test_a_torn_image_of_any_split_is_said_before_training(tmp_path, run_job):
    folder = tree(tmp_path / "pets", train={"dog": 10, "cat": 10}, test={"dog": 2, "cat": 2})
    (folder / "test/dog/1.png").write_bytes(b"torn")
    with pytest.raises(UsageError, match=r"test/dog/1.png: not a readable image"):
        run_job("data=images", f"data.target.root={folder}", "init=random", "batch_size=4")
    assert not list(tmp_path.glob("run*/history.jsonl"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("t.txt", "text,label\n", "unknown suffix; give one of .csv, .tsv"),
        ("t.csv", None, "no such file"),
        ("t.csv", "", "not a readable table"),
        ("t.csv", "words,label\na,b\n", "has no column text; its columns are words, label"),
        ("t.csv", "text,label\ngood,a\n ,b\n", "row 2 has no text; fix or remove it, or set on_bad=skip"),
        ("t.csv", "text,label\ngood,a\nbad,\n", "row 2 has no label; fix or remove it, or set on_bad=skip"),
        ("t.jsonl", "{not json}\n", "not a readable table"),
        ("t.parquet", "PAR1", "not a readable table"),
    ],
)
def test_tables_that_cannot_be_read_are_named(tmp_path, file, content, message):
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        text_table(str(tmp_path / file))
    assert "\n" not in str(caught.value)


def test_texts_and_images_do_not_pass_for_each_other():
    texts = ("data=text_table", f"data.target.root={FILES / 'letters.csv'}", "init=random")
    with pytest.raises(UsageError, match="the target letters holds texts, but the backbone takes images"):
        build(compose(*texts))
    bert = ("backbone=text", f"backbone.name={FILES / 'tiny_bert'}", "init=random")
    with pytest.raises(UsageError, match="the target digits holds images, but the backbone takes texts"):
        build(compose(*bert))


def test_relative_roots_lie_in_the_folder_of_the_launch(tmp_path):
    tree(tmp_path / "pets", dog=5, cat=5)
    config = compose("data=images", "data.target.root=pets", "init=random", root=tmp_path)
    assert config.data.target["root"] == str(tmp_path / "pets")
    assert (config.data.target["name"], config.data.name) == ("pets", "images")
    assert isinstance(read_domain(config, "target").samples.labels, np.ndarray)


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Val", "Test"),
        ("TRAIN", "Valid", "TEST"),
        ("training", "validation", "testing"),
        ("train", "dev", "test"),
    ],
)
def test_splits_are_found_under_their_usual_names(names, tmp_path):
    counts = dict(zip(names, (6, 4, 2), strict=True))
    tree(tmp_path, **{name: {"cat": n, "dog": n} for name, n in counts.items()})
    samples = image_folder(str(tmp_path))
    assert samples.classes == ("cat", "dog")
    assert {split: len(indices) for split, indices in samples.given.items()} == {"train": 12, "val": 8, "test": 4}


@pytest.mark.parametrize("names", [("seg_train", "seg_test"), ("train-set", "Validation set", "test-set")])
def test_classes_that_look_like_splits_are_refused(names, tmp_path):
    tree(tmp_path, **{name: {"cat": 2, "dog": 2} for name in names})
    with pytest.raises(
        UsageError, match=r"look like splits rather than classes; name them, such as data\.target\.train"
    ):
        image_folder(str(tmp_path))
    samples = image_folder(str(tmp_path), train=names[0], test=names[-1])
    assert samples.classes == ("cat", "dog")


def test_a_split_of_two_names_and_a_folder_beside_the_splits(tmp_path):
    tree(tmp_path, train={"cat": 2, "dog": 2}, extra={"cat": 3})
    assert image_folder(str(tmp_path)).notes == ("ignored folder extra beside the splits: 1",)
    tree(tmp_path, valid={"cat": 1}, validation={"cat": 1})
    with pytest.raises(UsageError, match="valid and validation are both names of the val split; rename or remove one"):
        image_folder(str(tmp_path))


def test_photographs_one_level_deeper_are_named(tmp_path):
    tree(tmp_path / "download/photos", cat=2, dog=2)
    with pytest.raises(UsageError, match=r"download: holds the one folder photos; give root=.*download/photos"):
        image_folder(str(tmp_path / "download"))
