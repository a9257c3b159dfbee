"""Published weights come from the libraries' own caches, or fail in seconds with one line; never from the network."""

import socket
import time

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torchvision import models

from tests.helpers import BACKBONES, WHOLE, compose, differing, state
from tlexp.errors import UsageError
from tlexp.runs.build import build

TIMM = ("backbone=timm", "backbone.name=resnet10t", "backbone.size=32", "init=pretrained")
TORCHVISION = ("backbone=torchvision", "backbone.name=resnet18", "backbone.size=32", "init=pretrained")


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    # No address can be reached, whatever machine the test runs on.
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1:9")
    weights = models.ResNet18_Weights.DEFAULT
    monkeypatch.setattr(weights.value, "url", "http://127.0.0.1:9/resnet18-none.pth", raising=False)
    return tmp_path


@pytest.mark.parametrize(("options", "name"), [(TIMM, "timm's resnet10t"), (TORCHVISION, "of torchvision")])
def test_without_a_cache_and_a_network_it_is_said_in_seconds(options, name):
    started = time.monotonic()
    with pytest.raises(UsageError, match="neither in the local cache nor to be fetched") as caught:
        build(compose(*options))
    assert time.monotonic() - started < 20
    assert name in str(caught.value)
    assert "give a local file as init=PATH" in str(caught.value)
    assert not constants.HF_HUB_OFFLINE


def test_timm_weights_are_found_in_the_hubs_cache(empty_caches):
    published = timm.create_model("resnet10t", pretrained=False)
    folder = empty_caches / "hub/models--timm--resnet10t.c3_in1k"
    snapshot = folder / "snapshots/0000000000000000000000000000000000000000"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(snapshot.name)
    save_file(published.state_dict(), snapshot / "model.safetensors")
    components = build(compose(*TIMM))
    assert (components.start.weights.origin, components.start.weights.loaded) == (
        "pretrained",
        components.start.weights.total,
    )
    ours, theirs = state(components.task.model.backbone.body), state(published)
    assert not differing(ours, {name: theirs[name] for name in ours})


def test_torchvision_weights_are_found_in_its_cache(empty_caches):
    published = models.resnet18()
    folder = empty_caches / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    torch.save(published.state_dict(), folder / models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1])
    components = build(compose(*TORCHVISION))
    assert components.start.weights.loaded == components.start.weights.total
    ours, theirs = state(components.task.model.backbone.body), state(published)
    assert not differing(ours, {name: theirs[name] for name in ours})


@pytest.mark.parametrize(
    "backbone", [*BACKBONES] if WHOLE else ["small_cnn", "timm_resnet", "torchvision_resnet", "bert"]
)
def test_random_weights_and_our_own_checkpoints_ask_no_network(run_job, monkeypatch, backbone):
    few = ("data.target.classes=[0,1,2]", "data.source=null", "batch_size=6", "data.test_fraction=0.9", "epochs=1")

    def refuse(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    first = run_job(*BACKBONES[backbone], *few, "init=random")
    again = run_job(*BACKBONES[backbone], *few, f"init={first['checkpoint']}")
    assert again["weights"].startswith(first["checkpoint"])
