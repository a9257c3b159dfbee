"""Data sets of the Hugging Face library, from local folders; the hub itself is only asked to be absent."""

import io
import time

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.helpers import compose
from tlexp.backbones.base import InputSpec
from tlexp.data.readers.huggingface import hf_dataset
from tlexp.errors import UsageError
from tlexp.runs.build import build
from tlexp.runs.domains import read_domain

SPEC = InputSpec(3, 8, (0.0,) * 3, (1.0,) * 3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def png(shade):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def rows(column, values, labels):
    feature = datasets.Image() if column == "image" else datasets.Value("string")
    features = datasets.Features({column: feature, "label": datasets.ClassLabel(names=["cat", "dog"])})
    return datasets.Dataset.from_dict({column: values, "label": labels}, features)


def saved(folder, column, **components):
    datasets.DatasetDict({part: rows(column, *content) for part, content in components.items()}).save_to_disk(
        str(folder)
    )
    return str(folder)


def test_images_with_splits_of_their_own(tmp_path):
    root = saved(tmp_path / "pets", "image", train=([png(10), png(20)] * 3, [1, 0] * 3), test=([png(30)], [0]))
    samples = hf_dataset(root=root)
    assert (samples.name, samples.classes) == ("pets", ("cat", "dog"))
    assert {part: len(indices) for part, indices in samples.given.items()} == {"train": 6, "test": 1}
    table = samples.inputs.take(np.array([0, 6])).materialize(SPEC)
    assert table[[0, 1]][:, 0, 0, 0].tolist() == [10, 30]


def test_texts_and_rows_without_a_label(tmp_path):
    root = saved(tmp_path / "notes", "text", train=(["good", "bad", "so", " "], [1, 0, -1, 1]))
    with pytest.raises(UsageError, match=r"notes: row 3 has no label, or one outside its classes; .*; and 1 more"):
        hf_dataset(root=root)
    samples = hf_dataset(root=root, on_bad="skip")
    assert samples.inputs.texts == ("good", "bad")
    assert [skipped.reason for skipped in samples.skipped] == [
        "has no label, or one outside its classes",
        "has no text",
    ]


def test_a_folder_of_plain_files_and_a_run_on_it(tmp_path):
    (tmp_path / "notes").mkdir()
    lines = [f"word {index},{'ab'[index % 2]}" for index in range(40)]
    (tmp_path / "notes/train.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    config = compose("data=named", "dataset@data.target=hf", "data.target.root=notes", "init=random", root=tmp_path)
    assert config.data.target["name"] == "notes"
    domain = read_domain(config, "target")
    assert domain.samples.classes == ("a", "b")
    assert sum(domain.sizes().values()) == 40


def test_a_torn_image_is_named_by_its_row(tmp_path):
    torn = {"bytes": b"torn", "path": None}
    root = saved(tmp_path / "pets", "image", train=([png(10), png(20)] * 10 + [torn], [1, 0] * 10 + [1]))
    chosen = ("data=named", "dataset@data.target=hf", f"data.target.root={root}", "init=random", "batch_size=4")
    with pytest.raises(UsageError, match=r"pets: row 21: not a readable image \(unknown format\)"):
        build(compose(*chosen)).data.materialize()
    domain = read_domain(compose(*chosen, "data.target.on_bad=skip"), "target")
    assert len(domain.samples.labels) == 20
    assert domain.samples.skipped[0].location.endswith("pets: row 21")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"hub=None root=None: give the data set's name on the hub or a folder, one of them"),
        ({"root": "nowhere"}, "root=nowhere: no such folder"),
        ({"train": "training"}, r"train=training: .* has the splits train; name yours"),
        ({"label": "kind"}, "has no column kind; its columns are text, label"),
        ({"input": "words"}, "has no column words; its columns are text, label"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, options, message):
    root = saved(tmp_path / "notes", "text", train=(["good", "bad"], [1, 0]))
    given = {"root": root} | options if options else {}
    with pytest.raises(UsageError, match=message):
        hf_dataset(**given)


def test_a_hub_that_does_not_answer_is_said_in_seconds(monkeypatch):
    from tlexp.backbones import hub

    monkeypatch.setattr(hub, "_reachable", lambda endpoint: False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    before = time.monotonic()
    with pytest.raises(UsageError, match=r"hub=stanfordnlp/imdb: cannot be read \(.*\); check the name") as caught:
        hf_dataset(hub="stanfordnlp/imdb")
    assert time.monotonic() - before < 20
    assert "\n" not in str(caught.value)
