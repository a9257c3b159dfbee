"""The network of a run: one backbone, a head for each task, and the modes of what is frozen."""

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tlexp.backbones.base import Backbone, InputSpec, Stage
from tlexp.backbones.batchnorm import SourceStatistics, has_statistics
from tlexp.fingerprint import digest
from tlexp.rng import fork_rng

HEAD = "head"
SOURCE_HEAD = "source_head"
PLAIN = (bool, int, float, str, tuple)  # types of a module's settings


class Features(NamedTuple):
    """Features (batch, num_features) of a frozen backbone, in the place of its inputs."""

    values: Tensor


class TransferModel(nn.Module):
    """A backbone with one head for both domains or one for each.

    Frozen means three things: no gradient, no optimizer step, and eval mode whoever calls `train()`, so that a frozen
    stage's output depends neither on randomness nor on the other images of a batch, and its buffers never change.

    Args:
        backbone: the representation.
        classes: number of classes of each head; `{"target": c}` is one head for all domains.
        seed: heads are drawn from the stream (seed, stream, domain), the same for every strategy and alpha.
        source_statistics: the source's own BatchNorm statistics; None where both domains share one set.
        head_hidden: units of a hidden layer in each head; 0 for none.
        head_dropout: dropout probability before a head's output layer.
        frozen_statistics: BatchNorm layers keep the statistics they start with, also where their weights train.
        stream: of the heads: the source's own run has another one, or features would know a new head of the same seed.

    Attributes:
        pretrained_heads: the domains whose heads came with the weights.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: dict[str, int],
        seed: int,
        source_statistics: SourceStatistics | None = None,
        head_hidden: int = 0,
        head_dropout: float = 0.0,
        frozen_statistics: bool = False,
        stream: str = "head",
    ) -> None:
        super().__init__()
        self.frozen_statistics = frozen_statistics
        self.backbone: Any = backbone
        self.classes = classes
        self.memory_format = torch.contiguous_format
        self.source_statistics = source_statistics
        self.heads = nn.ModuleDict()
        self.pretrained_heads: set[str] = set()
        for domain, count in classes.items():
            with fork_rng(seed, stream, domain):
                self.heads[domain] = _head(backbone.num_features, count, head_hidden, head_dropout)
        self.backbone_stages = [stage.inside("backbone.") for stage in backbone.stages()]
        self.head_stages = [
            Stage(
                HEAD if domain == "target" else SOURCE_HEAD,
                tuple(f"heads.{domain}.{name}" for name, _ in head.named_parameters()),
                (),
                tuple(f"heads.{domain}.{name}".rstrip(".") for name, _ in head.named_modules()),
            )
            for domain, head in self.heads.items()
        ]
        self.regroup(self.backbone_stages)

    def regroup(self, stages: list[Stage]) -> None:
        """Replaces the stages of the backbone by finer ones that together own the same tensors."""
        source = self.source_statistics
        self.backbone_stages = stages if source is None else _with_source_parameters(source, stages)
        self._spans = _spans(self.stages)
        self._trainable = {stage.name for stage in self.stages}

    @property
    def stages(self) -> list[Stage]:
        """All stages in order, stem first, heads last."""
        return [*self.backbone_stages, *self.head_stages]

    @property
    def trainable(self) -> set[str]:
        """Names of the stages that train."""
        return set(self._trainable)

    def forward(self, x: Any, domain: str = "target") -> Tensor:
        """Maps inputs (batch, ...) to the logits (batch, classes) of a domain's head."""
        return self.classify(self.features(x, domain), domain)

    def classify(self, features: Tensor, domain: str = "target") -> Tensor:
        """Maps features (batch, num_features) to the logits (batch, classes) of a domain's head."""
        head = self.heads[domain] if domain in self.heads else self.heads["target"]
        logits: Tensor = head(features)
        return logits

    def features(self, x: Any, domain: str = "target") -> Tensor:
        """Maps inputs (batch, ...) to the backbone's features (batch, num_features) under a domain's statistics."""
        if isinstance(x, Features):
            return x.values
        statistics = self.source_statistics if domain == "source" else None
        with statistics.active(self.backbone) if statistics is not None else nullcontext():
            features: Tensor = self.backbone(self.as_input(x))
        return features

    def features_together(self, batches: list[Any]) -> list[Tensor]:
        """Maps several batches in one pass, so that BatchNorm sees their mixture."""
        sizes = [len(_first(x)) for x in batches]
        joined = _joined([self.as_input(x) for x in batches])
        return list(self.features(joined).split(sizes))  # type: ignore[no-untyped-call]

    def as_input(self, x: Any) -> Any:
        """Returns inputs as the backbone takes them: images, which travel as bytes, are normalised here."""
        if not isinstance(x, Tensor):
            return x
        x = x.contiguous(memory_format=self.memory_format)
        if x.dtype != torch.uint8:
            return x
        spec: InputSpec = self.backbone.input
        return spec.normalised(x).to(next(self.parameters()).dtype)

    def use_channels_last(self) -> None:
        """Lays images and weights out channel by channel last, which makes convolutions faster on many devices."""
        self.memory_format = torch.channels_last
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def encode(self, x: Any, domain: str) -> Tensor:
        """Returns the features (batch, num_features) of a frozen backbone for inputs on the CPU, on the CPU."""
        device = next(self.parameters()).device
        on_device = {name: value.to(device) for name, value in x.items()} if isinstance(x, dict) else x.to(device)
        return self.features(on_device, domain).float().cpu()

    def fingerprint(self, domain: str) -> str:
        """Returns a key that changes where `encode` would give other features for the same inputs of a domain."""
        statistics = self.source_statistics if domain == "source" else None
        first = next(self.parameters())
        numerics = f"{first.device.type} {first.dtype} {self.memory_format} {torch.get_num_threads()}"
        with statistics.active(self.backbone) if statistics is not None else nullcontext():
            tensors = [(name, tensor.detach().cpu()) for name, tensor in self.backbone.state_dict().items()]
            contents = [tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for _, tensor in tensors]
        settings = repr({name: value for name, value in vars(self.backbone).items() if isinstance(value, PLAIN)})
        names = (name for name, _ in tensors)
        return digest(repr(self.backbone), settings, str(self.backbone.input), numerics, *names, *contents)

    def trained_statistics(self) -> list[Tensor]:
        """Returns the running statistics that training changes: those of training stages, for both domains."""
        if self.frozen_statistics:
            return []
        training = [stage for stage in self.stages if stage.name in self._trainable]
        buffers = [self.get_buffer(name) for stage in training for name in stage.buffers]
        if self.source_statistics is not None:
            layers = {module for stage in training for module in stage.modules}
            buffers += self.source_statistics.of({name.removeprefix("backbone.") for name in layers})
        return [buffer for buffer in buffers if buffer.is_floating_point()]

    def set_trainable(self, names: Collection[str]) -> None:
        """Lets exactly the named stages train: sets gradients and modes."""
        self._trainable = set(names)
        parameters = dict(self.named_parameters())
        for stage in self.stages:
            for name in stage.parameters:
                parameters[name].requires_grad_(stage.name in self._trainable)
        self.train(self.training)

    def train(self, mode: bool = True) -> "TransferModel":
        """Sets the mode of what trains; what is frozen stays in eval mode."""
        super().train(mode)
        for name, module in self.named_modules():
            if name in self._spans:
                module.training = mode and not self._trainable.isdisjoint(self._spans[name])
            if self.frozen_statistics and has_statistics(module):
                module.training = False
        return self


def _with_source_parameters(source: SourceStatistics, stages: list[Stage]) -> list[Stage]:
    """Adds the source's own BatchNorm weights and biases to the stages that hold the target's."""
    extended = []
    for stage in stages:
        paths = [name.removeprefix("backbone.").rpartition(".") for name in stage.parameters]
        layers, kinds = {layer for layer, _, _ in paths}, {kind for _, _, kind in paths}
        affine = [name for name in source.affine_of(layers) if name.rpartition(".")[2] in kinds]
        names = (f"source_statistics.{name}" for name in affine)
        extended.append(replace(stage, parameters=tuple(dict.fromkeys((*stage.parameters, *names)))))
    return extended


def _first(x: Any) -> Tensor:
    """Returns one tensor of a batch, as long as the batch."""
    if isinstance(x, dict):
        return next(iter(x.values()))  # type: ignore[no-any-return]
    return x.values if isinstance(x, Features) else x


def _joined(batches: list[Any]) -> Any:
    """Concatenates batches; texts are padded to the longest of them, and their masks say so."""
    if isinstance(batches[0], Features):
        return Features(torch.cat([x.values for x in batches]))
    if isinstance(batches[0], dict):
        width = max(_first(x).shape[1] for x in batches)
        padded = [{k: nn.functional.pad(v, (0, width - v.shape[1])) for k, v in x.items()} for x in batches]
        return {key: torch.cat([x[key] for x in padded]) for key in batches[0]}
    return torch.cat(batches)


def _head(width: int, count: int, hidden: int, dropout: float) -> nn.Module:
    """Returns a linear layer, or one on top of a hidden layer with ReLU and dropout."""
    layers: list[nn.Module] = [nn.Linear(width, hidden), nn.ReLU()] if hidden else []
    layers += [nn.Dropout(dropout)] if dropout else []
    output = nn.Linear(hidden or width, count)
    return nn.Sequential(*layers, output) if layers else output


def _spans(stages: list[Stage]) -> dict[str, set[str]]:
    """Returns, for each module at or above a stage's, the stages that lie in it: it trains if one of them does."""
    spans: dict[str, set[str]] = {}
    for stage in stages:
        for module in stage.modules:
            path = module.split(".")
            for depth in range(len(path)):
                spans.setdefault(".".join(path[: depth + 1]), set()).add(stage.name)
    return spans
