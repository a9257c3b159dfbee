import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.helpers import differing, state
from tlexp.backbones.small_cnn import SmallCNN
from tlexp.backbones.weights import load_backbone, read_checkpoint
from tlexp.errors import UsageError
from tlexp.runs.init import pretrained_head


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone.", "_orig_mod.", "backbone.", "model.module."])
@pytest.mark.parametrize("ending", [".pth", ".ckpt", ".safetensors"])
def test_weights_arrive_whatever_wraps_them(tmp_path, prefix, ending):
    source, target = SmallCNN(norm="batch"), SmallCNN(norm="batch")
    tensors = {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}
    path = tmp_path / f"weights{ending}"
    if ending == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors, "epoch": 3} if ending == ".ckpt" else tensors, path)
    result = load_backbone(target, read_checkpoint(path)[0], "a file", allow_partial=False)
    assert not differing(state(source), state(target))
    assert result.loaded == result.total == len(source.state_dict())
    assert str(result) == f"a file: {result.total} of {result.total} tensors"


def test_the_old_head_is_left_out_and_said():
    tensors = {**SmallCNN().state_dict(), "heads.target.weight": torch.zeros(5, 128)}
    result = load_backbone(SmallCNN(), tensors, "five classes", allow_partial=False)
    assert result.unexpected == ("heads.target.weight",)
    assert "unused heads.target.weight" in str(result)


def test_less_than_the_whole_backbone_is_an_error_unless_allowed():
    tensors = SmallCNN().state_dict()
    del tensors["stem.0.weight"]
    tensors["hidden.2.weight"] = torch.zeros(3, 3)
    with pytest.raises(
        UsageError,
        match=r"loads 9 of 11 tensors, missing stem.0.weight, .* .hidden.2.weight is 3x3, not 128x2048.: .*allow_par",
    ):
        load_backbone(SmallCNN(), tensors, "half", allow_partial=False)
    result = load_backbone(SmallCNN(), tensors, "half", allow_partial=True)
    assert (result.loaded, result.total, len(result.missing)) == (9, 11, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable checkpoint"),
        (b"not a checkpoint at all", "not a readable checkpoint"),
        ({}, "holds no tensors by name"),
        ({"epoch": 3}, "holds no tensors by name"),
    ],
)
def test_files_that_hold_nothing_are_said_in_one_line(tmp_path, content, message):
    path = tmp_path / "weights.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UsageError, match=message) as caught:
        read_checkpoint(path)[0]
    assert "\n" not in str(caught.value)


def test_two_networks_in_one_file_are_not_mixed():
    tensors = {f"model.{name}": tensor for name, tensor in SmallCNN().state_dict().items()}
    same = {f"module.{name.removeprefix('model.')}": tensor for name, tensor in tensors.items()}
    assert load_backbone(SmallCNN(), {**tensors, **same}, "twice", allow_partial=False).missing == ()
    other = {f"module.{name}": tensor for name, tensor in SmallCNN().state_dict().items()}
    with pytest.raises(UsageError, match=r"two networks, model.stem.0.weight and module.stem.0.weight are the same"):
        load_backbone(SmallCNN(), {**tensors, **other}, "mixed", allow_partial=False)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_tensors_may_lie_under_the_usual_keys(tmp_path, key):
    torch.save({key: SmallCNN().state_dict(), "loss": torch.tensor(0.1), "epoch": 3}, tmp_path / "w.pth")
    assert len(read_checkpoint(tmp_path / "w.pth")[0]) == len(SmallCNN().state_dict())


def test_files_older_than_batchnorms_count_are_whole():
    old = {name: value for name, value in SmallCNN(norm="batch").state_dict().items() if "num_batches" not in name}
    assert load_backbone(SmallCNN(norm="batch"), old, "old", allow_partial=False).missing == ()


def test_a_layout_that_cannot_be_adapted_is_a_misfit():
    from tlexp.backbones.timm import TimmBackbone

    tensors = TimmBackbone("vit_tiny_patch16_224", 64).state_dict()
    tensors["body.pos_embed"] = torch.zeros(1, 196, 192)
    with pytest.raises(UsageError, match=r"body.pos_embed is 1x196x192, not 1x17x192"):
        load_backbone(TimmBackbone("vit_tiny_patch16_224", 64), tensors, "no class token", allow_partial=False)


def test_a_torn_file_is_said_in_one_line(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(nn.Linear(100, 100).state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UsageError, match="not a readable checkpoint"):
        read_checkpoint(path)[0]


def test_the_output_layer_that_came_along_is_found():
    """Ours with and without a hidden layer, a published one by its shape, and none among what only looks like one."""
    features = torch.randn(2, 6)
    w, b = torch.randn(3, 6), torch.randn(3)
    ours = {"model.heads.target.weight": w, "model.heads.target.bias": b}
    assert torch.allclose(pretrained_head(ours, list(ours), 6)(features), features @ w.T + b)
    published = {"fc.weight": w[:, :, None, None], "fc.bias": b, "norm.weight": torch.ones(6), "other.weight": w[:, :4]}
    assert torch.allclose(pretrained_head(published, list(published), 6)(features), features @ w.T + b)
    two = {**published, "fc2.weight": w, "fc2.bias": b}
    assert pretrained_head(two, list(two), 6) is None, "nobody knows which"
    assert (
        pretrained_head({"norm.weight": torch.ones(6), "norm.bias": torch.ones(6)}, ["norm.weight", "norm.bias"], 6)
        is None
    )
    hidden = {"model.heads.target.0.weight": torch.randn(5, 6), "model.heads.target.0.bias": torch.zeros(5)}
    hidden |= {"model.heads.target.3.weight": torch.randn(3, 5), "model.heads.target.3.bias": b}
    first, last = hidden["model.heads.target.0.weight"], hidden["model.heads.target.3.weight"]
    assert torch.allclose(pretrained_head(hidden, list(hidden), 6)(features), (features @ first.T).relu() @ last.T + b)
