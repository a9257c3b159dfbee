"""Every classification model of torchvision, cut before its last linear layer."""

import difflib
import socket
from typing import Any
from urllib.error import URLError

from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum

from tlexp.backbones.base import InputSpec, Stage, check_size, group_stages, measure_width
from tlexp.backbones.hub import SECONDS, first_sentence
from tlexp.errors import UsageError

HEADS = ("fc", "classifier", "heads", "head")


class TorchvisionBackbone(nn.Module):
    """A torchvision classifier whose last linear layer is an identity.

    Args:
        name: a model's name in torchvision, such as `resnet50`, `alexnet`, `vgg16`.
        size: side of the images; None for the size it was pretrained at. Position embeddings are resampled.
        weights: which of the published weights, such as `IMAGENET1K_V2`, whose preprocessing is used; None for
            torchvision's default.
        top: keep the hidden layers of the classifier (AlexNet, VGG, MobileNet); without them features are all that
            enters the classifier, flattened, as with `include_top=False` in Keras.

    Raises:
        UsageError: for a name or weights that torchvision does not know, or a size that the model cannot work with.
    """

    def __init__(self, name: str, size: int | None = None, weights: str | None = None, top: bool = True) -> None:
        super().__init__()
        if name not in (known := models.list_models(module=models)):
            close = ", ".join(difflib.get_close_matches(name, known, n=3)) or "none is close"
            raise UsageError(f"backbone.name={name}: torchvision has no such classifier; did you mean: {close}?")
        check_size(size)
        self.name, self.top = name, top
        published = models.get_model_weights(name)
        if weights is not None and weights not in published.__members__:
            remedy = f"torchvision has {', '.join(choice.name for choice in published)} for {name}"
            raise UsageError(f"backbone.weights={weights}: {remedy}")
        self.weights: WeightsEnum = published[weights or "DEFAULT"]
        transform = self.weights.transforms()
        native, before = transform.crop_size[0], transform.resize_size[0]
        mean, std = tuple(transform.mean), tuple(transform.std)
        side = native if size is None else size
        self.input = InputSpec(3, side, mean, std, transform.interpolation.value, round(before * side / native))
        try:
            self.body = _headless(_create(name, None, side), top)
            self.num_features = measure_width(self, self.input)
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            remedy = f"torchvision's {name} cannot work with it ({first_sentence(error)})"
            raise UsageError(f"backbone.size={side}: {remedy}; backbone.size=null is {native}") from error

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, 3, size, size) to features (batch, num_features)."""
        features: Tensor = self.body(x)
        return features.flatten(1)

    def stages(self) -> list[Stage]:
        """The stem, then the library's own stages: children, parts of `features`, or encoder layers."""
        names = [*dict(self.named_parameters()), *dict(self.named_buffers())]
        pools = _pools(self.body)
        stage_of: dict[str, str] = {}
        for name in names:
            stage_of[name] = _stage_name(name.split(".")[1:], pools)
        order = list(dict.fromkeys(stage_of.values()))
        if "stem" not in order:  # the first layers have a name of their own
            stage_of = {name: "stem" if stage == order[0] else stage for name, stage in stage_of.items()}
            order[0] = "stem"
        return group_stages(self, stage_of, sorted(order, key=lambda stage: stage != "stem"))

    def pretrained_state(self) -> tuple[dict[str, Tensor], list[str]]:
        """Fetches the published weights (or finds them in the local cache) under this module's own names.

        Raises:
            UsageError: where they can be had from neither.
        """
        before = socket.getdefaulttimeout()
        try:
            socket.setdefaulttimeout(SECONDS)  # the download itself knows no limit
            model = _create(self.name, self.weights)
        except (URLError, OSError, RuntimeError) as error:
            raise UsageError(
                f"init=pretrained: {self.weights} of torchvision is neither in the local cache nor to be "
                f"fetched ({error}); give a local file as init=PATH, or init=random"
            ) from error
        finally:
            socket.setdefaulttimeout(before)
        return {f"body.{name}": tensor for name, tensor in model.state_dict().items()}, []

    def adapted(self, name: str, given: Tensor) -> Tensor | None:
        """Returns a vision transformer's position embeddings for this size; None for any other tensor."""
        if name != "body.encoder.pos_embedding":
            return None
        position = name.removeprefix("body.")
        state = {position: given}
        resampled = models.vision_transformer.interpolate_embeddings(self.input.size, self.body.patch_size, state)
        tensor: Tensor = resampled[position]
        return tensor


def _create(name: str, weights: WeightsEnum | None, size: int | None = None) -> Any:
    """Builds a model for a size, without the auxiliary heads that two of them train with."""
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # Their published weights have the auxiliary heads, which can be taken off only afterwards, and expect images
        # that the model itself normalises once more.
        published = weights is not None
        options = {"aux_logits": published, "init_weights": not published, "transform_input": True}
        model = models.get_model(name, weights=weights, **options)
        model.aux_logits, model.AuxLogits, model.aux1, model.aux2 = False, None, None, None
        return model
    if name.startswith("vit_") and weights is None:
        options = {"image_size": size}
    elif name.startswith("maxvit") and weights is None:
        options = {"input_size": (size, size)}
    return models.get_model(name, weights=weights, **options)


def _headless(model: nn.Module, top: bool) -> nn.Module:
    """Replaces the last linear layer (or convolution, in SqueezeNet) under the model's head, or the head with all its
    layers, by an identity.
    """
    head = next(name for name in HEADS if hasattr(model, name))
    if not top:
        setattr(model, head, nn.Identity())
        return model
    layers = [
        name
        for name, child in model.named_modules()
        if isinstance(child, nn.Linear | nn.Conv2d) and name.startswith(head)
    ]
    parent, _, last = layers[-1].rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Identity())
    return model


def _pools(body: nn.Module) -> list[int]:
    """Positions of the max-pools inside a plain `features` (AlexNet, VGG), where its stages end."""
    children = getattr(body, "features", nn.Identity()).named_children()
    return [int(name) for name, child in children if isinstance(child, nn.MaxPool2d) and name.isdigit()]


def _stage_name(path: list[str], pools: list[int]) -> str:
    child = path[0]
    if child == "features" and pools:
        return f"features{sum(int(path[1]) > pool for pool in pools)}" if int(path[1]) > pools[0] else "stem"
    if child == "features":
        return "stem" if path[1] in ("0", "conv0", "norm0") else f"features.{path[1]}"
    if child in ("trunk_output", "blocks") and len(path) > 2:
        return f"{child}.{path[1]}"
    if child == "layers":  # MNASNet: eight modules of its stem, then its stages
        return "stem" if int(path[1]) < 8 else f"layers.{path[1]}"
    if child == "encoder" and path[1] == "layers":
        return f"encoder.{path[2]}"
    if child in ("conv1", "bn1", "conv_proj", "class_token", "stem") or path[:2] == ["encoder", "pos_embedding"]:
        return "stem"
    return child
