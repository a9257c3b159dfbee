"""Data as people have them: every kind of file and row that goes wrong, and what is said or done about it."""

import io
import json
import os
import struct
import time
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from tests.helpers import BAD, compose, tree
from tlexp.backbones.base import InputSpec
from tlexp.data.images.sources import ImageFiles
from tlexp.data.readers.folder import image_folder
from tlexp.data.readers.tables import image_table, text_table
from tlexp.errors import UsageError
from tlexp.runs.build import build
from tlexp.runs.domains import read_domain

SPEC = InputSpec(3, 8, (0.0,) * 3, (1.0,) * 3)


@pytest.fixture
def hostile(tmp_path):
    """Two good classes, with every bad file in one and everything that is no image in the other."""
    folder = tree(tmp_path / "hostile", cat=12, dog=12)
    for name, content in BAD.items():
        (folder / "cat" / name).write_bytes(content)
    for name in (".DS_Store", "._3.png", "Thumbs.db", "desktop.ini", "notes.txt", "labels.csv", "clip.mp4", "plot.pdf"):
        (folder / "dog" / name).write_bytes(b"x")
    tree(folder, **{".ipynb_checkpoints": 1, "__MACOSX": 1})
    (folder / "README.md").write_text("read me")
    (folder / "dog/loop").symlink_to(folder / "dog")
    return folder


def chosen(folder, *more):
    return compose("data=images", f"data.target.root={folder}", "init=random", "batch_size=4", *more)


def test_what_is_no_image_is_left_out_and_counted(hostile):
    samples = image_folder(str(hostile))
    assert samples.classes == ("cat", "dog")
    assert len(samples.labels) == 24 + len(BAD)
    assert samples.notes == (
        "ignored hidden files and folders: 6, files outside the class folders: 1, files with other suffixes: 4",
    )


def test_a_class_without_images_is_named_or_left_out(tmp_path):
    folder = str(tree(tmp_path, cat=2, dog=2, empty=0))
    with pytest.raises(
        UsageError, match="/empty: holds no images of this class; remove the folder, or set on_bad=skip"
    ):
        image_folder(folder)
    samples = image_folder(folder, on_bad="skip")
    assert samples.classes == ("cat", "dog")
    assert [skipped.reason for skipped in samples.skipped] == ["holds no images of this class"]
    assert not image_folder(folder, classes=["cat", "dog"]).skipped, "nobody asked for that class"


def test_the_first_bad_file_is_named_with_the_number_of_others(hostile):
    every = chosen(hostile, "data.val=large")
    with pytest.raises(
        UsageError, match=r"hostile/cat/\w+\.\w+: not a readable image \(.+\); fix or remove it"
    ) as caught:
        build(every).data.materialize()
    assert "\n" not in str(caught.value)
    assert "on_bad=skip" in str(caught.value)
    assert "more; run tlexp-check-data to list them" in str(caught.value)


@pytest.mark.parametrize("name", BAD)
def test_each_bad_file_is_named_with_its_reason(tmp_path, name):
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(
        UsageError, match=rf"{name}: not a readable image \(.+\); fix or remove it, or set on_bad=skip"
    ) as e:
        ImageFiles((tmp_path / name,)).materialize(SPEC)
    assert "\n" not in str(e.value)


def parts_of(split):
    return split.train, split.val, split.test


def test_bad_files_are_left_out_where_that_is_asked_for_with_a_count_and_a_list(hostile):
    domain = read_domain(chosen(hostile, "data.target.on_bad=skip"), "target")
    assert sorted(skipped.location.rsplit("/", 1)[1] for skipped in domain.samples.skipped) == sorted(BAD)
    assert all(skipped.reason.startswith("not a readable image") for skipped in domain.samples.skipped)
    assert sum(domain.sizes().values()) == 24
    assert any(note.startswith("skipped 8 examples, first ") for note in domain.notices())
    clean = read_domain(chosen(tree(hostile.parent / "clean", cat=12, dog=12)), "target")
    assert [part.tolist() for part in parts_of(domain.split)] == [p.tolist() for p in parts_of(clean.split)]


def test_a_run_keeps_the_list_of_what_it_skipped(hostile, run_job):
    run = ("data=images", f"data.target.root={hostile}", "init=random", "batch_size=4", "epochs=1")
    result = run_job(*run, "data.target.on_bad=skip")
    assert len(result["data"]["target"]["skipped"]) == len(BAD)
    assert result["data"]["target"]["train"] + result["data"]["target"]["val"] + result["test_examples"] == 24


def test_a_class_of_which_nothing_can_be_read_is_an_error(tmp_path):
    folder = tree(tmp_path / "pets", cat=6, dog=6)
    for path in (folder / "dog").iterdir():
        path.write_bytes(b"torn")
    with pytest.raises(UsageError, match="data set pets: none of the images of class dog can be read"):
        read_domain(chosen(folder, "data.target.on_bad=skip"), "target")


def test_on_bad_takes_two_words_only(tmp_path):
    with pytest.raises(UsageError, match="on_bad=ignore: choose one of error, skip"):
        image_folder(str(tree(tmp_path / "pets", cat=1, dog=1)), on_bad="ignore")


# Unusual, but pictures ------------------------------------------------------------------------------------------


def sixteen_bit_colours(path):
    """A PNG with 16 bits a channel, which Pillow reads but does not write."""
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), dtype=np.uint16)

    def chunk(kind, content):
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))
    return values


def colours():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def read(path, channels=3):
    table = ImageFiles((path,)).materialize(InputSpec(channels, 8, (0.0,) * channels, (1.0,) * channels))
    return table[[0]][0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("ending", "mode", "options"),
    [
        ("png", "L", {}),
        ("png", "1", {}),
        ("png", "LA", {}),
        ("png", "RGBA", {}),
        ("png", "P", {}),
        ("png", "P", {"transparency": bytes(range(0, 256, 2))}),
        ("png", "P", {"transparency": 3}),
        ("png", "RGB", {"transparency": (1, 2, 3)}),
        ("gif", "P", {}),
        ("bmp", "RGB", {}),
        ("tif", "CMYK", {}),
        ("jpg", "CMYK", {"quality": 95}),
        ("tif", "YCbCr", {}),
        ("webp", "RGBA", {"lossless": True}),
        ("ppm", "RGB", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_every_mode_gives_the_values_of_pillows_own_conversion(tmp_path, ending, mode, options):
    path = tmp_path / f"a.{ending}"
    picture = colours().convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.linear_gradient("L").resize((8, 8)))
    picture.save(path, **options)
    for channels, wanted in ((1, "L"), (3, "RGB"), (4, "RGBA")):
        with Image.open(path) as opened:
            expected = np.asarray(opened.convert(wanted)).reshape(8, 8, -1)
        assert (read(path, channels) == expected).all(), wanted


def test_sixteen_bits_of_colour_are_as_pillow_reads_them_and_of_grey_the_same(tmp_path):
    values = sixteen_bit_colours(tmp_path / "colours.png")
    expected = np.asarray(Image.open(tmp_path / "colours.png").convert("RGB"))
    assert (read(tmp_path / "colours.png") == expected).all()
    assert (expected == values >> 8).all(), "Pillow keeps the upper eight bits"
    for ending in ("png", "tif"):
        Image.fromarray(values[..., 0]).save(tmp_path / f"grey.{ending}")
        assert (read(tmp_path / f"grey.{ending}", 1)[..., 0] == expected[..., 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    colours().save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert (read(tmp_path / "a.png") == expected).all()


def test_a_picture_with_another_ending_than_its_own_and_a_large_one_are_read(tmp_path):
    colours().save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.JPG")
    assert (read(tmp_path / "a.JPG") == np.asarray(colours())).all()
    Image.new("L", (11000, 9000), 7).save(tmp_path / "large.png")  # beyond the size from which Pillow warns
    assert (read(tmp_path / "large.png") == 7).all()


def test_unicode_and_odd_names_are_names(tmp_path):
    folder = tree(tmp_path / "naïve 数据", **{"Ä 'q' %s": 5, "数据": 5, "a,b=c": 5})
    samples = image_folder(str(folder))
    assert samples.classes == ("a,b=c", "Ä 'q' %s", "数据")
    assert len(samples.inputs.materialize(SPEC)) == 15


def test_classes_that_differ_in_capitals_only_are_mentioned(tmp_path):
    samples = image_folder(str(tree(tmp_path / "pets", Cat=2, cat=2, dog=2)))
    assert samples.notes == ("the classes 'Cat', 'cat' differ in case, spaces or signs only",)


# Splits that lack something -------------------------------------------------------------------------------------


def test_a_class_that_validation_lacks_is_said_by_name_and_the_class_map_is_trainings(tmp_path, run_job):
    components = {"train": {"a": 6, "b": 6, "c": 6}, "val": {"a": 2, "c": 2}, "test": {"a": 2, "b": 2, "c": 2}}
    folder = tree(tmp_path / "abc", **components)
    result = run_job("data=images", f"data.target.root={folder}", "init=random", "batch_size=4", "epochs=1")
    assert result["data"]["target"]["notices"] == ["its validation split has no example of 1 classes: b"]
    card = torch.load(result["folder"] / "best.ckpt", weights_only=True)["tlexp"]
    assert card["classes"]["target"] == ["a", "b", "c"]
    domain = read_domain(chosen(folder), "target")
    assert set(domain.labels("val").tolist()) == {0, 2}


def test_a_validation_cut_from_training_is_said(tmp_path):
    folder = tree(tmp_path / "pets", train={"cat": 10, "dog": 10}, test={"cat": 2, "dog": 2})
    assert read_domain(chosen(folder), "target").notices() == [
        "has no validation split: it is taken from the training split"
    ]


# Tables ---------------------------------------------------------------------------------------------------------


def rows(count=12):
    return pd.DataFrame(
        {
            "path": [f"pictures/{index}.png" for index in range(count)],
            "label": [("10", "2")[index % 2] for index in range(count)],
            "split": ["train", "valid", "test"] * (count // 3),
            "patient": [f"p{index // 3}" for index in range(count)],
        }
    )


@pytest.fixture
def pictures(tmp_path):
    for index in range(12):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"pictures/{index}.png")
    return tmp_path


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_of_images_in_any_format(pictures, ending):
    table, path = rows(), pictures / f"t.{ending}"
    {
        "csv": lambda: table.to_csv(path, index=False, sep=";", encoding="utf-8-sig"),
        "tsv": lambda: table.to_csv(path, index=False, sep="\t"),
        "jsonl": lambda: table.to_json(path, orient="records", lines=True),
        "parquet": lambda: table.astype({"label": int}).to_parquet(path),
    }[ending]()
    samples = image_table(str(path), group="patient")
    assert samples.classes == ("2", "10"), "numbers are names, in the order of their values"
    assert len(set(samples.groups)) == 4
    assert samples.inputs.materialize(SPEC)[[11]][0, 0, 0, 0] == 11
    given = image_table(str(path), split="split").given
    assert {part: len(indices) for part, indices in given.items()} == {"train": 4, "val": 4, "test": 4}


def test_a_run_on_a_table_of_images_keeps_its_groups_whole(pictures):
    rows().to_csv(pictures / "t.csv", index=False)
    options = ("data=image_table", f"data.target.root={pictures / 't.csv'}", "data.target.group=patient")
    domain = read_domain(compose(*options, "init=random"), "target")
    owners = [set(domain.samples.groups[part].tolist()) for part in parts_of(domain.split)]
    assert sum(map(len, owners)) == 4


def test_given_splits_that_part_a_group_are_refused(pictures):
    rows().to_csv(pictures / "t.csv", index=False)
    with pytest.raises(UsageError, match=r"group p0 is in the given splits \w+ and \w+, and 3 more"):
        image_table(str(pictures / "t.csv"), split="split", group="patient")


def test_a_path_that_leads_nowhere_is_named(pictures):
    table = rows()
    table.loc[5, "path"] = "pictures/gone.png"
    table.to_csv(pictures / "t.csv", index=False)
    options = ("data=image_table", f"data.target.root={pictures / 't.csv'}", "init=random", "batch_size=2")
    with pytest.raises(UsageError, match=r"gone.png: not a readable image \(.*No such file"):
        build(compose(*options)).data.materialize()
    domain = read_domain(compose(*options, "data.target.on_bad=skip"), "target")
    assert [skipped.location for skipped in domain.samples.skipped] == [str(pictures / "pictures/gone.png")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": ""}, "t.csv: row 6 has no label; fix or remove it, or set on_bad=skip"),
        ({"path": " "}, "t.csv: row 6 has no path"),
        ({"split": "holdout"}, "t.csv: row 6 has split=holdout, which is none of train, val, test"),
        ({"split": ""}, "t.csv: row 6 has no split"),
        ({"patient": ""}, "t.csv: row 6 has no patient"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_or_left_out(pictures, change, message):
    table = rows()
    (column, value), options = next(iter(change.items())), {"split": "split"}
    table.loc[5, column] = value
    table.loc[8, column] = value
    table.to_csv(pictures / "t.csv", index=False)
    if column == "patient":
        options = {"group": "patient"}
    with pytest.raises(UsageError, match=rf"{message}.*; and 1 more"):
        image_table(str(pictures / "t.csv"), **options)
    samples = image_table(str(pictures / "t.csv"), **options, on_bad="skip")
    assert len(samples.labels) == 10
    assert [skipped.location for skipped in samples.skipped] == [f"{pictures / 't.csv'}: row {row}" for row in (6, 9)]


def test_labels_are_what_is_written_whatever_it_looks_like(tmp_path):
    labels = ["NA", "None", "nan", "007", "7", "1e3", "-1", "99999999999999999999", "true", "null", " x"]
    pd.DataFrame({"text": [f"t{i}" for i in range(len(labels))], "label": labels}).to_csv(
        tmp_path / "t.csv", index=False
    )
    samples = text_table(str(tmp_path / "t.csv"))
    assert set(samples.classes) == set(labels)
    assert [samples.classes[label] for label in samples.labels] == labels


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_whole_numbers_stay_whole_beside_a_missing_one(tmp_path, ending):
    table, path = (
        pd.DataFrame({"text": list("abcd"), "label": pd.array([0, 1, None, 1], "Int64")}),
        tmp_path / f"t.{ending}",
    )
    table.to_json(path, orient="records", lines=True) if ending == "jsonl" else table.to_parquet(path)
    samples = text_table(str(path), on_bad="skip")
    assert samples.classes == ("0", "1")
    assert [skipped.reason for skipped in samples.skipped] == ["has no label"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_separators_and_encodings(tmp_path, separator, encoding):
    content = (
        separator.join(("text", "label"))
        + "\n"
        + "".join(f'"größer{separator} {index}"{separator}{"ab"[index % 2]}\n' for index in range(4))
    )
    (tmp_path / "t.csv").write_bytes(content.encode(encoding))
    samples = text_table(str(tmp_path / "t.csv"), encoding="latin-1" if encoding == "latin-1" else "utf-8")
    assert samples.inputs.texts[0] == f"größer{separator} 0"


def test_another_encoding_is_said(tmp_path):
    (tmp_path / "t.csv").write_bytes("text,label\ngrößer,a\nkleiner,b\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"t.csv: is not written in utf-8 \(.*\); save it so, or set encoding="):
        text_table(str(tmp_path / "t.csv"))
    with pytest.raises(UsageError, match="encoding=latin-99: unknown encoding"):
        text_table(str(tmp_path / "t.csv"), encoding="latin-99")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,x\nb,x\n", r"only one class \(x\); need at least two"),
        ("text,label\n", "holds no examples"),
        ("text,label\n ,x\n,y\n", "row 1 has no text"),
    ],
)
def test_tables_that_teach_nothing(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UsageError, match=message):
        text_table(str(tmp_path / "t.csv"))


def test_data_smaller_than_a_batch_are_one_batch(tmp_path):
    folder = tree(tmp_path / "few", cat=6, dog=6)
    components = build(compose("data=images", f"data.target.root={folder}", "init=random"))
    size = components.data.domains["target"].sizes()["train"]
    assert size < 16
    assert (components.data.batch_size, components.data.steps) == (size, 1)
    assert f"batch_size=16: the target has {size} training examples, so batches have too" in components.notices
    few = tree(tmp_path / "source", cat=4, dog=4)
    joint = (f"data.source.root={few}", "alpha=0.5", "batch_size=6")
    with pytest.raises(
        UsageError, match=r"batch_size=6: the source source has only \d training examples; use batch_size"
    ):
        build(compose("data=images", f"data.target.root={folder}", "init=random", *joint))


def test_rows_with_more_fields_than_the_head_are_refused_rather_than_shifted(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n" + "good, really,1\nbad, really,0\n")
    with pytest.raises(
        UsageError, match=r"t.csv: not a readable table \(row 1 has 3 fields where the header has 2; quote texts"
    ):
        text_table(str(tmp_path / "t.csv"))


def test_a_quotation_mark_in_a_table_with_tabs_swallows_nothing(tmp_path):
    lines = [f"{'' if index % 5 else chr(34)}text {index}\t{index % 2}" for index in range(20)]
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    samples = text_table(str(tmp_path / "t.tsv"))
    assert len(samples.labels) == 20
    assert samples.inputs.texts[5] == '"text 5'
    (tmp_path / "q.tsv").write_text('text\tlabel\n"a\tb"\t1\n"c\nd"\t0\n')
    assert text_table(str(tmp_path / "q.tsv")).inputs.texts == ("a\tb", "c\nd")


def test_every_separator_of_lines_that_json_allows_in_a_text(tmp_path):
    rows = [{"text": f"a\u2028b\x85c {index}", "label": "xy"[index % 2]} for index in range(4)]
    (tmp_path / "t.jsonl").write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), newline="")
    assert text_table(str(tmp_path / "t.jsonl")).inputs.texts[3] == "a\u2028b\x85c 3"


def test_a_list_of_labels_is_not_a_label(tmp_path):
    rows = [{"text": "one", "label": ["a"]}, {"text": {"x": 1}, "label": "a"}, {"text": "b", "label": "b"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UsageError, match=r"row 1 holds a list as its label, where one value is needed; .*; and 1 more"):
        text_table(str(tmp_path / "t.jsonl"))
    table = pd.DataFrame({"text": ["a", "b"], "label": [[1, 2], [3]]})
    table.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="row 1 holds a ndarray as its label"):
        text_table(str(tmp_path / "t.parquet"))


@pytest.mark.parametrize("classes", [["x", "y"], ["cat", "typo"], ["cat"], ["cat", "cat"]])
def test_classes_that_are_not_there_are_answered_with_those_that_are(tmp_path, classes):
    with pytest.raises(UsageError, match=r"data set pets: choose at least two different ones of cat, dog$"):
        image_folder(str(tree(tmp_path / "pets", cat=2, dog=2)), classes=classes)


def test_a_folder_that_cannot_be_entered_is_named(tmp_path, monkeypatch):
    folder, real = tree(tmp_path / "pets", cat=2, dog=2), os.scandir
    (folder / "dog/private").mkdir()

    def guarded(path="."):
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(
        UsageError, match=r"dog/private: this folder cannot be read \(Permission denied\); change its permissions"
    ):
        image_folder(str(folder))


def test_names_with_signs_of_markup_and_formulas_survive_a_run(tmp_path, run_job, capsys):
    folder = tree(tmp_path / "odd", **{"$5_$10": 10, "[bold]": 10, "$a^{b $": 10})
    result = run_job("data=images", f"data.target.root={folder}", "init=random", "batch_size=4", "epochs=1")
    assert result["data"]["target"]["classes"] == ["$5_$10", "$a^{b $", "[bold]"]
    shown = capsys.readouterr().out
    assert "3: $5_$10, $a^{b $, [bold]" in shown


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ({"a": 1, "b": 1}, "has no train example: the data set has 2 examples; add some"),
        ({"a": 9, "b": 1}, "has no training example of b: b has 1 examples; add some, leave the class out"),
    ],
)
def test_too_few_examples_are_said_with_their_number(tmp_path, make, message):
    with pytest.raises(UsageError, match=message):
        build(chosen(tree(tmp_path / "few", **make)))


def test_groups_that_leave_a_split_empty_are_said_with_their_number(tmp_path):
    for groups, message in (
        (lambda index: "one", r"has no (val|test) example: the data set has 30 examples in 1 groups, which stay whole"),
        (lambda index: index % 3, r"has no training example of \w(, \w)?: \w has 10 examples in 1 groups; add some"),
    ):
        lines = [f"text {index},{'abc'[index % 3]},{groups(index)}" for index in range(30)]
        (tmp_path / "t.csv").write_text("text,label,author\n" + "\n".join(lines) + "\n")
        config = compose(
            "data=text_table", f"data.target.root={tmp_path / 't.csv'}", "data.target.group=author", "init=random"
        )
        with pytest.raises(UsageError, match=message):
            read_domain(config, "target").check("target")


def test_a_validation_split_that_the_budget_replaces_is_said(tmp_path):
    components = {"train": {"cat": 10, "dog": 10}, "val": {"cat": 4, "dog": 4}, "test": {"cat": 2, "dog": 2}}
    folder = tree(tmp_path / "pets", **components)
    assert read_domain(chosen(folder), "target").notices() == []
    (notice,) = read_domain(chosen(folder, "data.shots=5"), "target").notices()
    assert notice.startswith("has a validation split that is not used: the label budget pays for validation too")


def test_colours_of_every_space_are_read(tmp_path):
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    lab = ImageCms.applyTransform(colours(), ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    lab.save(tmp_path / "lab.tif")
    assert np.abs(read(tmp_path / "lab.tif").astype(int) - np.asarray(colours())).mean() < 3
    assert read(tmp_path / "lab.tif", 1).shape == (8, 8, 1)


# Many -----------------------------------------------------------------------------------------------------------


def test_ten_thousand_files_are_opened_split_and_reported_in_seconds(tmp_path):
    content = io.BytesIO()
    Image.effect_noise((64, 64), 40).convert("RGB").save(content, "JPEG")
    for label in range(10):
        (tmp_path / f"many/{label}").mkdir(parents=True)
        for index in range(1000):
            (tmp_path / f"many/{label}/{index}.jpg").write_bytes(content.getvalue())
    before = time.monotonic()
    domain = read_domain(chosen(tmp_path / "many"), "target")
    assert sum(domain.sizes().values()) == 10_000
    assert len(domain.split_hash) == 12
    assert time.monotonic() - before < 10
