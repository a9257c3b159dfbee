"""Every model of timm, with its own preprocessing and its own grouping into stages."""

import difflib
from typing import Any

import timm
from timm.data import resolve_model_data_config
from timm.models import group_parameters
from torch import Tensor, nn

from tlexp.backbones import hub
from tlexp.backbones.base import InputSpec, Stage, group_stages, measured_width
from tlexp.errors import UsageError


class TimmBackbone(nn.Module):
    """A timm model without its classifier.

    Args:
        name: a model's name in timm, with a pretrained tag if wanted (`resnet18.a1_in1k`).
        size: side of the images; None for the size it was pretrained at.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth, for the models that have it.

    Raises:
        UsageError: for a name that timm does not know or options that the model does not take.
    """

    def __init__(self, name: str, size: int | None = None, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        if not timm.is_model(name.split(".")[0]):
            close = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=3)) or "none is close"
            raise UsageError(f"backbone.name={name}: timm has no such model; did you mean: {close}?")
        self.name, self.size = name, size
        self.options = {"num_classes": 0, "drop_rate": drop_rate}
        if drop_path_rate:
            self.options["drop_path_rate"] = drop_path_rate
        self.body = self._create(pretrained=False)
        config = resolve_model_data_config(self.body)
        channels, height, _ = config["input_size"]
        self.input = InputSpec(channels, size or height, config["mean"], config["std"], config["interpolation"])
        self.num_features = measured_width(self, self.input)

    def _create(self, pretrained: bool) -> Any:
        try:
            if self.size is not None:
                try:  # models with position embeddings are built for a size, convolutions take any
                    return timm.create_model(self.name, pretrained, img_size=self.size, **self.options)
                except TypeError:
                    pass
            return timm.create_model(self.name, pretrained, **self.options)
        except TypeError as error:
            raise UsageError(f"backbone.name={self.name}: {error}; leave that option at its default") from error

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, *input.shape) to pooled features (batch, num_features)."""
        features: Tensor = self.body(x)
        return features

    def stages(self) -> list[Stage]:
        """Groups as timm itself does, coarsely: the stem, then each stage or block; else by top-level children."""
        tensors = [*dict(self.body.named_parameters()), *dict(self.body.named_buffers())]
        try:
            ids = group_parameters(self.body, self.body.group_matcher(coarse=True), reverse=True)
            ids |= {name: _beside(name, ids) for name, _ in self.body.named_buffers()}
            ids = {name: ids[name] for name in tensors}
        except (AttributeError, NotImplementedError, AssertionError, KeyError):
            children = list(dict.fromkeys(name.split(".")[0] for name in tensors))
            ids = {name: children.index(name.split(".")[0]) for name in tensors}
        members: dict[int, list[str]] = {}
        for name in tensors:
            members.setdefault(ids[name], []).append(f"body.{name}")
        names: dict[int, str] = {}
        for index in sorted(members):
            name = _stage_name(len(names), members[index])
            names[index] = f"{name}.{index}" if name in names.values() else name
        return group_stages(self, {f"body.{name}": names[ids[name]] for name in tensors}, names.values())

    def pretrained_state(self) -> dict[str, Tensor]:
        """Fetches the published weights (or finds them in the local cache) under this module's own names.

        Raises:
            UsageError: where they can be had from neither.
        """
        try:
            with hub.failing_fast():
                model = self._create(pretrained=True)
        except Exception as error:  # the hub's client raises a dozen kinds, all of them meaning the same here
            cause = str(error).strip().split(". ")[0].rstrip(".")
            raise UsageError(
                f"init=pretrained: the weights of timm's {self.name} are neither in the local cache nor to be "
                f"fetched ({cause}); give a local file as init=PATH, or init=random"
            ) from error
        return {f"body.{name}": tensor for name, tensor in model.state_dict().items()}


def _beside(buffer: str, ids: dict[str, int]) -> int:
    """Returns the group of the first parameter in the buffer's module, or in the nearest one around it."""
    prefix = buffer
    while prefix:
        prefix = prefix.rpartition(".")[0]
        if near := [index for name, index in ids.items() if name.startswith(f"{prefix}." if prefix else "")]:
            return near[0]
    return 0


def _stage_name(index: int, tensors: list[str]) -> str:
    """Names a group after what its first tensors have in common: `layer1`, `blocks.0`."""
    if index == 0:
        return "stem"
    modules = [name.split(".")[1:-1] for name in tensors]
    alike = [path for path in modules if path[:1] == modules[0][:1]]
    common = [parts[0] for parts in zip(*alike, strict=False) if len(set(parts)) == 1]
    return ".".join(common[:2]) or f"stage{index}"
