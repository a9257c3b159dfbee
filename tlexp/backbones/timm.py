"""Every model of timm, with its own preprocessing and its own grouping into stages."""

import difflib
import warnings
from dataclasses import replace
from math import floor
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.models import adapt_input_conv, group_parameters
from torch import Tensor, nn

from tlexp.backbones import hub
from tlexp.backbones.base import InputSpec, Stage, check_size, group_stages, measure_width
from tlexp.backbones.batchnorm import has_statistics
from tlexp.errors import UsageError

CLASSIFIER = "classifier"
POSITIONS = ("pos_embed", "relative_position_bias_table", "rel_pos", "attention_biases")


class TimmBackbone(nn.Module):
    """A timm model without its classifier.

    Args:
        name: a model's name in timm, with a pretrained tag if wanted (`resnet18.a1_in1k`).
        size: side of the images; None for the size it was pretrained at. Position embeddings are resampled.
        in_chans: channels of the images; None for those it was pretrained with. The first convolution's weights are
            summed for grey images and repeated for more than three channels, mean and standard deviation likewise.
        drop_rate: dropout before the classifier; None for the model's own.
        drop_path_rate: stochastic depth, for the models that have it; None for the model's own.
        gradient_checkpointing: recomputes activations in the backward pass to save memory; not for
            models with BatchNorm, whose statistics would count every batch twice.

    Raises:
        UsageError: for a name that timm does not know, options that the model does not take or a size that it
            cannot work with.
    """

    def __init__(
        self,
        name: str,
        size: int | None = None,
        in_chans: int | None = None,
        drop_rate: float | None = None,
        drop_path_rate: float | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not timm.is_model(name.split(".")[0]):
            close = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=3)) or "none is close"
            raise UsageError(f"backbone.name={name}: timm has no such model; did you mean: {close}?")
        if in_chans is not None and in_chans < 1:
            raise UsageError(f"backbone.in_chans={in_chans}: must be at least 1")
        check_size(size)
        self.name, self.size = name, size
        wanted = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate, "in_chans": in_chans}
        self.options = {"num_classes": 0, **{key: value for key, value in wanted.items() if value is not None}}
        self.body = self._create(pretrained=False)
        config = resolve_model_data_config(self.body)
        self.native, side = config["input_size"], size or config["input_size"][1]
        channels = in_chans or self.native[0]
        mean, std = _by_channel(config["mean"], channels), _by_channel(config["std"], channels)
        resize = floor(side / config["crop_pct"])
        self.input = InputSpec(channels, side, mean, std, config["interpolation"], resize, config["crop_mode"])
        self._check_size(side)
        if gradient_checkpointing:
            self._save_memory()

    def _save_memory(self) -> None:
        refusal = f"backbone.gradient_checkpointing=true: timm's {self.name}"
        if any(has_statistics(module) for module in self.body.modules()):
            raise UsageError(f"{refusal} has BatchNorm, whose statistics would count every batch twice")
        try:
            self.body.set_grad_checkpointing(True)
        except (AttributeError, AssertionError, NotImplementedError) as error:
            raise UsageError(f"{refusal} cannot do it") from error

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
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            if pretrained:
                raise
            if self.size is None:
                reason = hub.first_sentence(error)
                raise UsageError(f"backbone.name={self.name}: timm cannot build it ({reason})") from error
            raise self._impossible_size(self.size, hub.first_sentence(error)) from error

    def _check_size(self, side: int) -> None:
        """Measures the width, which shows that the size works, and that no patch is cut off."""
        embed = getattr(self.body, "patch_embed", None)
        patches, pads = getattr(embed, "proj", None), getattr(embed, "dynamic_img_pad", False)
        whole = self.size is None or pads
        if isinstance(patches, nn.Conv2d) and patches.kernel_size == patches.stride and not whole:
            edge = patches.stride[0]
            if side % edge:
                reason = f"its patches are {edge} pixels wide, and {side % edge} pixels would be ignored"
                raise self._impossible_size(side, reason)
        try:
            self.num_features = measure_width(self, self.input)
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            raise self._impossible_size(side, hub.first_sentence(error)) from error

    def _impossible_size(self, side: int | None, reason: str) -> UsageError:
        remedy = f"timm's {self.name} cannot work with it ({reason}); use a multiple of its patches or strides, or "
        return UsageError(f"backbone.size={side}: {remedy}backbone.size=null for the size it was pretrained at")

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, size, size) to pooled features (batch, num_features)."""
        features: Tensor = self.body(x)
        return features

    def stages(self) -> list[Stage]:
        """Groups as timm itself does: the stem, then each stage or, where that is but one, each block; where timm has
        no grouping, by children.
        """
        ids, _ = self._ids(coarse=True)
        if len(set(ids.values())) <= 3:
            ids, _ = self._ids(coarse=False)
        return self._grouped(self._with_trailing_norms(ids))

    def blocks(self) -> list[Stage]:
        """Groups as timm's own layer decay does: by block; what it groups with the classifier is `beside_head`."""
        ids, of_head = self._ids(coarse=False)
        return [
            replace(block, beside_head=index == of_head)
            for index, block in zip(sorted(set(ids.values())), self._grouped(ids), strict=True)
        ]

    def _ids(self, coarse: bool) -> tuple[dict[str, int], int]:
        """Returns the group of every tensor in timm's order, and that of a classifier; by children without timm's."""
        names = [*dict(self.body.named_parameters()), *dict(self.body.named_buffers())]
        try:
            whole: Any = WithClassifier(self.body)
            ids: dict[str, int] = group_parameters(whole, self.body.group_matcher(coarse=coarse), reverse=True)
            ids |= {name: _beside(name, ids) for name, _ in self.body.named_buffers()}
            return {name: ids[name] for name in names}, ids[CLASSIFIER]
        except (AttributeError, NotImplementedError, AssertionError, KeyError):
            children = list(dict.fromkeys(_child(name) for name in names))
            return {name: children.index(_child(name)) for name in names}, len(children)

    def _grouped(self, ids: dict[str, int]) -> list[Stage]:
        """Returns the stages of tensors by the number of their group, in order."""
        tensors = list(ids)
        members: dict[int, list[str]] = {}
        for name in tensors:
            members.setdefault(ids[name], []).append(f"body.{name}")
        names: dict[int, str] = {}
        for index in sorted(members):
            name = _stage_name(len(names), members[index])
            names[index] = f"{name}.{index}" if name in names.values() else name
        return group_stages(self, {f"body.{name}": names[ids[name]] for name in tensors}, names.values())

    def _with_trailing_norms(self, ids: dict[str, int]) -> dict[str, int]:
        """Lets a normalisation that comes last join the stage before it, as timm does for ViT: it is none by itself."""
        parameters = dict(self.body.named_parameters())
        while len(order := sorted(set(ids.values()))) > 2:
            last, before = order[-1], order[-2]
            if any(parameters[name].ndim > 1 for name, index in ids.items() if index == last and name in parameters):
                break
            ids = {name: before if index == last else index for name, index in ids.items()}
        return ids

    @property
    def no_weight_decay(self) -> frozenset[str]:
        """Names of the parameters that timm's own training does not decay, such as position embeddings and tokens."""
        named: set[str] = getattr(self.body, "no_weight_decay", set)()
        tables = {n for n, _ in self.body.named_parameters() if n.endswith("relative_position_bias_table")}
        return frozenset(f"body.{name}" for name in {*named, *tables})

    def pretrained_state(self) -> tuple[dict[str, Tensor], list[str]]:
        """Returns the published weights, from the hub or its local cache, under this module's own names, and what
        timm had to adapt to this size and these channels.

        Raises:
            UsageError: where they can be had from neither.
        """
        try:
            with hub.offline(unless=True):
                model = self._create(pretrained=True)
        except Exception as error:  # the hub's client raises a dozen kinds, all of them meaning the same here
            raise UsageError(
                f"init=pretrained: the weights of timm's {self.name} are neither in the local cache nor to be "
                f"fetched ({hub.first_sentence(error)}); give a local file as init=PATH, or init=random"
            ) from error
        state = {f"body.{name}": tensor for name, tensor in model.state_dict().items()}
        notes = []
        if self._resampled(state):
            notes.append(f"position embeddings resampled from {self.native[1]} to {self.input.size} pixels")
        if self.input.channels != self.native[0]:
            notes.append(f"first convolution adapted from {self.native[0]} to {self.input.channels} channels")
        return state, notes

    def _resampled(self, state: dict[str, Tensor]) -> bool:
        """Returns whether a tensor of this size has another shape at the size the model was pretrained at."""
        if self.input.size == self.native[1]:
            return False
        with torch.device("meta"):  # shapes alone
            native = timm.create_model(self.name, num_classes=0).state_dict()
        return any(state[f"body.{name}"].shape != tensor.shape for name, tensor in native.items() if _is_position(name))

    def adapted(self, name: str, given: Tensor) -> Tensor | None:
        """Returns a tensor for other channels or another size as this module needs it; None where that has no sense."""
        shape = self.state_dict()[name].shape
        fitted: Tensor | None = None
        if name == _first_convolution(self) and (shape[0], *shape[2:]) == (given.shape[0], *given.shape[2:]):
            fitted = adapt_input_conv(self.input.channels, given, given.shape[1])
        elif name.endswith("relative_position_bias_table"):
            window = self.get_submodule(name.rpartition(".")[0]).window_size
            with warnings.catch_warnings():  # of torch, about how timm goes about it
                warnings.simplefilter("ignore", UserWarning)
                fitted = resize_rel_pos_bias_table(given, new_window_size=window, new_bias_shape=shape)
        elif name.endswith("pos_embed") and len(shape) == 3 == given.ndim:
            edge = int(shape[1] ** 0.5)  # patch tokens form a square, after prefix tokens such as the class token
            fitted = resample_abs_pos_embed(given, [edge, edge], num_prefix_tokens=shape[1] - edge**2)
        return fitted


class WithClassifier:
    """Names the parameters of a model as if it had a classifier, for timm's grouping; it is built without one."""

    def __init__(self, body: nn.Module) -> None:
        self._body = body

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Returns the model's parameters and one for the classifier."""
        return [*self._body.named_parameters(), (CLASSIFIER, nn.Parameter(torch.empty(0)))]


def _by_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Returns a statistic for other channels than it was made for: their mean for one, repeated for more."""
    if channels == len(values):
        return tuple(values)
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[index % len(values)] for index in range(channels))


def _first_convolution(module: nn.Module) -> str:
    """Returns the name of the weight that sees the images."""
    convolutions = (name for name, child in module.named_modules() if isinstance(child, nn.Conv2d))
    return f"{next(convolutions, '')}.weight"


def _is_position(name: str) -> bool:
    return any(part in name for part in POSITIONS)


def _child(name: str) -> str:
    """Returns the top-level child that a tensor lies in, or the member of it where that is a list."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdigit() else parts[0]


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
