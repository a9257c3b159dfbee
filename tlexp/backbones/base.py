"""The contract of a backbone, and the grouping of its tensors and modules into stages."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from tlexp.errors import UsageError

CALL_SETTINGS = ("truncation", "padding")  # how a tokenizer was last called


@dataclass(frozen=True)
class InputSpec:
    """The images a backbone expects and their preprocessing: resized, cropped, normalised per channel.

    Attributes:
        channels: 1 for grey, 3 for colour, 4 for colour with transparency; others need data with as many.
        size: pixels a side of what enters the network.
        mean: subtracted from each channel in [0, 1].
        std: what each channel is then divided by.
        interpolation: of the resizing, such as `bilinear` or `bicubic`.
        resize: pixels of the shorter side before the central `size` is cropped; None for `size`, which crops no margin.
        crop: `center` resizes the shorter side, `squash` both sides, `border` the longer side and pads.
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    resize: int | None = None
    crop: str = "center"

    kind: ClassVar[str] = "images"

    def example(self, n: int) -> Tensor:
        """Returns `n` inputs of the right shape, all zero."""
        return torch.zeros(n, self.channels, self.size, self.size)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Maps uint8 (..., channels, height, width) to float32 of the same shape, on the same device."""
        mean, std = (_by_channel(values, pixels.device) for values in (self.mean, self.std))
        return pixels.float().div_(255).sub_(mean).div_(std)

    def described(self) -> dict[str, Any]:
        """Returns the plain values that a checkpoint keeps."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"kind": self.kind, **plain}

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        how = f"{self.interpolation} to {self.resize or self.size}, {self.crop} crop"
        return f"{self.channels}x{self.size}x{self.size} ({how}), mean {mean}, std {std}"


@cache
def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Returns values as (channels, 1, 1), created once: copying to a GPU waits for all its pending work."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


@dataclass(frozen=True)
class TextSpec:
    """The tokens a text encoder expects.

    Attributes:
        tokenizer: maps texts to token ids; from the same place as the encoder.
        max_length: tokens per text, special ones included; longer texts are truncated and counted.
    """

    tokenizer: Any
    max_length: int

    kind: ClassVar[str] = "texts"

    def tokens(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Returns the token ids of each text and how many texts were truncated."""
        whole = self.tokenizer(list(texts), add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
        long = [index for index, ids in enumerate(whole) if len(ids) > self.max_length]
        if long:
            too_long = [texts[index] for index in long]
            options = {"truncation": True, "max_length": self.max_length}
            for index, ids in zip(long, self.tokenizer(too_long, **options)["input_ids"], strict=True):
                whole[index] = ids
        return whole, len(long)

    def padded(self, ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Returns `input_ids` and `attention_mask`, each (batch, longest of this batch), padded on the right."""
        width = max(len(row) for row in ids)
        padding = self.tokenizer.pad_token_id or 0
        rows = [list(row) + [padding] * (width - len(row)) for row in ids]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in ids]
        return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}

    def fingerprint(self) -> str:
        """Returns a string that changes where the same text would give other tokens."""
        tokenizer = self.tokenizer
        if (fast := getattr(tokenizer, "backend_tokenizer", None)) is None:
            # The rules of a slow tokenizer are its class.
            rules: Any = f"{type(tokenizer)} {sorted(tokenizer.get_vocab().items())}"
        else:
            rules = {key: value for key, value in json.loads(fast.to_str()).items() if key not in CALL_SETTINGS}
        return f"{self.max_length} {rules}"

    def example(self, n: int) -> dict[str, Tensor]:
        """Returns `n` inputs of the right form."""
        return self.padded(self.tokens(["example"] * n)[0])

    def described(self) -> dict[str, Any]:
        """Returns the plain values that a checkpoint keeps."""
        return {"kind": self.kind, "tokenizer": type(self.tokenizer).__name__, "max_length": self.max_length}

    def __str__(self) -> str:
        return f"at most {self.max_length} tokens of {type(self.tokenizer).__name__} ({len(self.tokenizer):,} entries)"


@dataclass(frozen=True)
class Stage:
    """A part of a network that trains or is frozen as a whole; names are relative to the module that was grouped.

    Attributes:
        name: as reports and `freeze_until` have it.
        parameters: names of the parameters it owns.
        buffers: names of the buffers it owns, running statistics among them.
        modules: names of the modules whose mode (train or eval) is this stage's alone.
        beside_head: whether it belongs to the head, such as a normalisation above the last block.
    """

    name: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    modules: tuple[str, ...]
    beside_head: bool = False

    def inside(self, prefix: str) -> "Stage":
        """Returns the stage with its names inside a larger module."""
        return replace(
            self,
            parameters=tuple(prefix + name for name in self.parameters),
            buffers=tuple(prefix + name for name in self.buffers),
            modules=tuple((prefix + name).rstrip(".") for name in self.modules),
        )

    def split(self, chosen: Collection[str], suffix: str) -> list["Stage"]:
        """Returns two stages: the parameters that are not selected, and `name/suffix` with those that are.

        The second also takes buffers and modules, so that it sets the mode; where nothing is selected, the stage is
        returned unchanged.
        """
        selected = tuple(name for name in self.parameters if name in chosen)
        if not selected:
            return [self]
        rest = tuple(name for name in self.parameters if name not in chosen)
        name = f"{self.name}/{suffix}"
        return [replace(self, parameters=rest, buffers=(), modules=()), replace(self, name=name, parameters=selected)]


class Backbone(Protocol):
    """Any `nn.Module` with these members will do; there is no base class."""

    name: str
    num_features: int
    input: InputSpec | TextSpec

    def __call__(self, x: Any) -> Tensor:
        """Maps inputs, such as images (batch, channels, size, size), to features (batch, num_features)."""

    def stages(self) -> list[Stage]:
        """Returns the stages in order, stem first; together they own each parameter and buffer once."""


def check_size(size: object) -> None:
    """Checks that a size is None or a number of pixels.

    Raises:
        UsageError: for anything else.
    """
    if size is not None and not (isinstance(size, int) and size >= 1):
        remedy = "must be at least 1, in whole pixels; backbone.size=null is the pretrained size"
        raise UsageError(f"backbone.size={size}: {remedy}")


def measure_width(module: nn.Module, spec: InputSpec | TextSpec) -> int:
    """Returns the width of the module's output by one forward pass; what libraries declare is not always right."""
    was_training = module.training
    with torch.no_grad():
        features = module.eval()(spec.example(2))
    module.train(was_training)
    return int(features.shape[1])


def group_stages(module: nn.Module, stage_of: dict[str, str], order: Iterable[str]) -> list[Stage]:
    """Groups a module's tensors and submodules into stages.

    A submodule belongs to a stage if all tensors below it do. One without tensors, such as a dropout, belongs to
    the stage of its nearest such ancestor or else to that of the module registered before it. A submodule that
    spans several stages belongs to none.

    Args:
        module: what is grouped.
        stage_of: the stage's name for the name of every parameter and buffer.
        order: the stages' names from the stem on.
    """
    # By identity, since a tensor that is used in two places has a name in each.
    tensors = [*module.named_parameters(), *module.named_buffers()]
    stage_by_tensor = {id(tensor): stage_of[name] for name, tensor in tensors}
    owner: dict[str, str] = {}
    previous = next(iter(order := list(order)), "")
    for name, child in module.named_modules():
        stages = {stage_by_tensor[id(tensor)] for tensor in (*child.parameters(), *child.buffers())}
        if len(stages) == 1:
            previous = owner[name] = stages.pop()
        elif not stages and not any(True for _ in child.children()):
            ancestors = (name.rsplit(".", cut)[0] for cut in range(1, name.count(".") + 1))
            owner[name] = next((owner[a] for a in ancestors if a in owner), previous)
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    return [
        Stage(
            stage,
            tuple(name for name in parameters if stage_of[name] == stage),
            tuple(name for name in buffers if stage_of[name] == stage),
            tuple(name for name, its in owner.items() if its == stage),
        )
        for stage in order
    ]
