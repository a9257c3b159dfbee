"""Every classification model of torchvision, cut before its last linear layer."""

import difflib
import socket
from typing import Any
from urllib.error import URLError

from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum

from tlexp.backbones.base import InputSpec, Stage, group_stages, measured_width
from tlexp.backbones.hub import SECONDS
from tlexp.errors import UsageError

HEADS = ("fc", "classifier", "heads", "head")


class TorchvisionBackbone(nn.Module):
    """A torchvision classifier whose last linear layer is an identity.

    Args:
        name: a model's name in torchvision, such as `resnet50`, `alexnet`, `vgg16`.
        size: side of the images; None for the size it was pretrained at.

    Raises:
        UsageError: for a name that torchvision does not know.
    """

    def __init__(self, name: str, size: int | None = None) -> None:
        super().__init__()
        if name not in (known := models.list_models(module=models)):
            close = ", ".join(difflib.get_close_matches(name, known, n=3)) or "none is close"
            raise UsageError(f"backbone.name={name}: torchvision has no such classifier; did you mean: {close}?")
        self.name = name
        self.weights: WeightsEnum = next(iter(models.get_model_weights(name)))
        transform = self.weights.transforms()
        crop = size or transform.crop_size[0]
        mean, std = tuple(transform.mean), tuple(transform.std)
        self.input = InputSpec(3, crop, mean, std, transform.interpolation.value)
        self.body = _headless(_create(name, None))
        self.num_features = measured_width(self, self.input)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, *input.shape) to features (batch, num_features)."""
        features: Tensor = self.body(x)
        return features

    def stages(self) -> list[Stage]:
        """The stem, then the library's own stages: children, parts of `features`, or encoder layers."""
        names = [*dict(self.named_parameters()), *dict(self.named_buffers())]
        pools = _pools(self.body)
        stage_of: dict[str, str] = {}
        for name in names:
            stage_of[name] = _stage_name(name.split(".")[1:], pools)
        return group_stages(self, stage_of, dict.fromkeys(["stem", *stage_of.values()]))

    def pretrained_state(self) -> dict[str, Tensor]:
        """Fetches the published weights (or finds them in the local cache) under this module's own names.

        Raises:
            UsageError: where they can be had from neither.
        """
        try:
            socket.setdefaulttimeout(SECONDS)  # the download itself knows no limit
            model = _create(self.name, self.weights)
        except (URLError, OSError, RuntimeError) as error:
            raise UsageError(
                f"init=pretrained: {self.weights} of torchvision is neither in the local cache nor to be "
                f"fetched ({error}); give a local file as init=PATH, or init=random"
            ) from error
        finally:
            socket.setdefaulttimeout(None)
        return {f"body.{name}": tensor for name, tensor in _headless(model).state_dict().items()}


def _create(name: str, weights: WeightsEnum | None) -> Any:
    """Builds a model without the auxiliary heads that two of them train with."""
    if name in ("googlenet", "inception_v3"):
        # Their published weights have the auxiliary heads, which can be taken off only afterwards.
        model = models.get_model(name, weights=weights, aux_logits=weights is not None, init_weights=weights is None)
        model.aux_logits, model.AuxLogits, model.aux1, model.aux2 = False, None, None, None
        return model
    return models.get_model(name, weights=weights)


def _headless(model: nn.Module) -> nn.Module:
    """Replaces the last linear layer (or convolution, in SqueezeNet) under the model's head by an identity."""
    head = next(name for name in HEADS if hasattr(model, name))
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
    if child == "encoder" and path[1] == "layers":
        return f"encoder.{path[2]}"
    if child in ("conv1", "bn1", "conv_proj", "class_token", "stem") or path[:2] == ["encoder", "pos_embedding"]:
        return "stem"
    return child
