"""The data report: what is there twice, what leaks, what disagrees, and what cannot be read."""

import io
import shutil
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from tests.helpers import BAD, compose, forked
from tlexp import cli
from tlexp.commands import check_data
from tlexp.data.quality.leakage import find_duplicates, find_warnings, split_examples
from tlexp.data.quality.scan import facts
from tlexp.runs.domains import read_domain


def photograph(seed, size=(96, 80)):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def pets(tmp_path):
    """Given splits with ten different pictures of each class in training and four in the test."""
    for part, count in (("train", 10), ("test", 4)):
        for label in ("cat", "dog"):
            folder = tmp_path / "pets" / part / label
            folder.mkdir(parents=True)
            for index in range(count):
                seed = (part == "test") * 1000 + (label == "dog") * 100 + index
                photograph(seed).save(folder / f"{index}.png")
    return tmp_path / "pets"


def report(folder, *more, source=None):
    data = ("data=images",) if source is None else ("data=images", f"data.source.root={source}")
    config = compose(*data, f"data.target.root={folder}", "init=random", *more)
    domains = {role: read_domain(config, role) for role in (("target", "source") if source else ("target",))}
    splits = split_examples(domains, {role: facts(domain.samples.inputs) for role, domain in domains.items()})
    pairs = find_duplicates(splits)
    return pairs, find_warnings(domains, splits, pairs)


def test_different_pictures_share_nothing(pets):
    pairs, said = report(pets)
    assert pairs == []
    assert said == ["target: has no validation split: it is taken from the training split"]


def test_a_copy_in_the_test_is_a_leak_also_in_another_format(pets):
    Image.open(pets / "train/cat/3.png").save(pets / "test/cat/3.bmp")
    (pair,), said = report(pets, "data.val=large", "data.fraction=1")
    assert (pair.second, pair.same, pair.near, pair.leak) == ("target/test", 1, 0, True)
    assert said[0].startswith(f"leak: {pair.first} and target/test share examples (1 identical), such as ")
    assert f"{pets}/train/cat/3.png and {pets}/test/cat/3.bmp" in said[0]


def test_a_picture_saved_again_smaller_and_worse_is_nearly_the_same(pets):
    with Image.open(pets / "train/dog/2.png") as picture:
        picture.resize((88, 72)).save(pets / "test/dog/2.jpg", quality=60)
    (pair,), said = report(pets)
    assert (pair.same, pair.near, pair.leak) == (0, 1, True)
    assert "0 identical, 1 nearly" in said[0]


def test_plain_pictures_do_not_look_alike(pets):
    for part, shade in (("train", 10), ("test", 11)):
        Image.new("RGB", (96, 80), (shade, 0, 0)).save(pets / part / "cat/plain.png")
    assert report(pets)[0] == []


def test_a_copy_in_the_source_is_a_leak_and_one_within_training_is_not(pets, tmp_path):
    shutil.copytree(pets, tmp_path / "other")
    for index, path in enumerate(sorted((tmp_path / "other").rglob("*.png"))):
        photograph(5000 + index).save(path)
    shutil.copy(pets / "test/dog/0.png", tmp_path / "other/train/dog/extra.png")
    shutil.copy(pets / "train/dog/1.png", pets / "train/dog/copy.png")
    _, said = report(pets, "data.val=large", "data.fraction=1", source=tmp_path / "other")
    leaks = [line for line in said if line.startswith("leak: ")]
    assert len(leaks) == 1
    assert "source/" in leaks[0]
    (twice,) = [line for line in said if line.startswith("duplicates: 1 examples")]
    assert "copy.png" in twice


def test_equal_examples_with_different_labels_are_named(pets):
    shutil.copy(pets / "train/dog/1.png", pets / "train/cat/wrong.png")
    _, said = report(pets)
    (line,) = [line for line in said if line.startswith("labels: ")]
    assert "1 identical examples have different ones" in line
    assert "wrong.png is cat" in line


def test_texts_are_equal_whatever_their_capitals_and_spaces(tmp_path):
    lines = [f"text number {index},{'ab'[index % 2]},train" for index in range(20)]
    lines += ["Text  NUMBER 3,b,test", "another,a,test"]
    (tmp_path / "t.csv").write_text("text,label,split\n" + "\n".join(lines) + "\n")
    config = compose(
        "data=text_table", f"data.target.root={tmp_path / 't.csv'}", "data.target.split=split", "init=random"
    )
    domains = {"target": read_domain(config, "target")}
    splits = split_examples(domains, {"target": facts(domains["target"].samples.inputs)})
    (pair,) = find_duplicates(splits)
    assert pair.leak
    assert pair.example.endswith("t.csv: row 21")


def test_imbalance_and_missing_classes_are_said(tmp_path):
    lines = [f"text {index},{'b' if index % 50 == 1 else 'a'}" for index in range(400)]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    domains = {
        "target": read_domain(
            compose("data=text_table", f"data.target.root={tmp_path / 't.csv'}", "init=random"), "target"
        )
    }
    said = find_warnings(domains, split_examples(domains, {"target": facts(domains["target"].samples.inputs)}), [])
    assert any("a has 188 training examples and b 4; see objective.class_weights" in line for line in said)


def test_texts_are_known_by_their_file_and_row_also_after_some_were_skipped(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"t{index},{index % 2}\n" for index in range(20)))
    (tmp_path / "test.csv").write_text("text,label\n,0\nnew,1\nT3,1\nother,0\n")
    files = ("data.target.train=train.csv", "data.target.test=test.csv", "data.target.on_bad=skip")
    domains = {
        "target": read_domain(
            compose("data=text_table", f"data.target.root={tmp_path}", *files, "init=random"), "target"
        )
    }
    (pair,) = find_duplicates(split_examples(domains, {"target": facts(domains["target"].samples.inputs)}))
    assert pair.example == "train.csv: row 4 and test.csv: row 3"


def check(*arguments, cwd):
    directory = "hydra.run.dir=outputs/checks/${now:%Y-%m-%d_%H-%M-%S-%f}"
    return forked(directory, *arguments, cwd=cwd, main=partial(cli.main, check_data.job), script="tlexp-check-data")


def test_the_script_lists_everything_and_draws_it(tmp_path, pets):
    for name, content in BAD.items():
        (pets / "train/cat" / name).write_bytes(content)
    done = check("data=images", f"data.target.root={pets}", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    for name in BAD:
        assert name in done.stdout
    assert "target: pets, 8 skipped" in done.stdout
    assert "a run refuses these data: fix or remove what cannot be read, or set data.target.on_bad=skip" in done.stdout
    lenient = check("data=images", f"data.target.root={pets}", "data.target.on_bad=skip", cwd=tmp_path)
    assert lenient.returncode == 0, lenient.stderr
    for picture in tmp_path.glob("outputs/checks/*/data_report.png"):
        with Image.open(picture) as drawn:
            assert drawn.width > 800
            assert len(drawn.convert("L").getcolors()) > 20
    for path in (pets / "train").rglob("*.png"):
        if path.name != "0.png":
            path.unlink()
    few = check("data=images", f"data.target.root={pets}", "data.target.on_bad=skip", cwd=tmp_path)
    assert few.returncode == 2
    assert "tlexp: the target pets has no val example: the data set has 10 examples; add some" in few.stderr
    wrong = check("data=images", "data.target.root=nowhere", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (2, f"tlexp: data.target.root={tmp_path / 'nowhere'}: no such folder\n")


def test_ten_thousand_files_are_reported_in_seconds(tmp_path):
    stream = io.BytesIO()
    photograph(0, (64, 64)).save(stream, "JPEG")
    for label in range(10):
        (tmp_path / f"many/{label}").mkdir(parents=True)
        for index in range(1000):
            (tmp_path / f"many/{label}/{index}.jpg").write_bytes(stream.getvalue() + bytes([label, index % 256]))
    before = time.monotonic()
    done = check("data=images", f"data.target.root={tmp_path / 'many'}", cwd=tmp_path)
    took = time.monotonic() - before
    assert done.returncode == 0, done.stderr
    assert "10,000 images of 10 classes" in done.stdout
    assert "leak: " in done.stdout
    assert took < 60  # about 6 s on two cores
