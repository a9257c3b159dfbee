"""Chance in training pictures: crops, flips, colours, patches, from a stream of its own for each picture and pass."""

from typing import Any

import torch
from torch import Tensor

from tlexp.backbones.base import InputSpec
from tlexp.data.batches import ArrayDataset, Batch, Pick
from tlexp.data.tables import Table
from tlexp.errors import UsageError
from tlexp.streams import forked


class Augment:
    """A recipe of transforms of torchvision's second version; one without any is the evaluation's own picture.

    Args:
        name: what reports call it.
        scale: share of the picture's area that a crop keeps at least; 1 for the evaluation's crop.
        stretch: how far a crop's sides may be from equal, as a factor.
        flip: probability of a mirror image; 0 where left and right mean something, as in digits.
        colour: how far brightness, contrast and saturation may change, as a share.
        hue: how far colours may turn, as a share of the circle.
        random_ops: operations of RandAugment (Cubuk et al. 2020) in a row.
        magnitude: how strong they are, of 30.
        erase: probability that a patch is blanked out (Zhong et al. 2020).

    Raises:
        UsageError: for a value outside its range.
    """

    def __init__(
        self,
        name: str,
        scale: float = 1.0,
        stretch: float = 1.0,
        flip: float = 0.0,
        colour: float = 0.0,
        hue: float = 0.0,
        random_ops: int = 0,
        magnitude: int = 9,
        erase: float = 0.0,
    ) -> None:
        self.name, self.scale, self.stretch, self.flip = name, scale, stretch, flip
        self.colour, self.hue, self.random_ops, self.magnitude, self.erase = colour, hue, random_ops, magnitude, erase
        for key, value in vars(self).items():
            if key != "name" and not isinstance(value, int | float):
                raise UsageError(f"augment.{key}={value}: must be a number")
        shares = {"scale": scale, "flip": flip, "colour": colour, "erase": erase}
        rules = [(key, value, 0 <= value <= 1, "must lie in [0, 1]") for key, value in shares.items()]
        rules += [
            ("scale", scale, scale > 0, "must be above 0"),
            ("stretch", stretch, stretch >= 1, "must be at least 1"),
            ("hue", hue, 0 <= hue <= 0.5, "must lie in [0, 0.5]"),
            ("random_ops", random_ops, random_ops in range(100), "must be a whole number of operations, or 0"),
            ("magnitude", magnitude, magnitude in range(31), "must be a whole number in [0, 30]"),
        ]
        for key, value, holds, rule in rules:
            if not holds:
                raise UsageError(f"augment.{key}={value}: {rule}")

    def __bool__(self) -> bool:
        return self.crops or bool(self.flip or self.colour or self.hue or self.random_ops or self.erase)

    @property
    def crops(self) -> bool:
        """Whether a crop is at random, so that pictures need their margins."""
        return self.scale < 1 or self.stretch > 1

    def transform(self, spec: InputSpec) -> Any:
        """Returns what maps a picture, uint8 (channels, height, width), to another one (channels, size, size).

        Raises:
            UsageError: for changes of colour where the channels are no colours.
        """
        from torchvision.transforms import InterpolationMode, v2

        if (self.colour or self.hue or self.random_ops) and spec.channels not in (1, 3):
            rule = f"changes colours, which {spec.channels} channels are not; use augment=light augment.colour=0"
            raise UsageError(f"augment={self.name}: {rule}")
        steps: list[Any] = []
        interpolation = InterpolationMode(spec.interpolation)
        if self.crops:
            ratio = (1 / self.stretch, self.stretch)
            # The other kinds of interpolation are for Pillow's pictures only.
            smooth = interpolation if interpolation.value in ("nearest", "bilinear") else InterpolationMode.BICUBIC
            steps.append(v2.RandomResizedCrop(spec.size, (self.scale, 1.0), ratio, smooth, antialias=True))
        steps += [v2.RandomHorizontalFlip(self.flip)] if self.flip else []
        if self.colour or self.hue:
            steps.append(v2.ColorJitter(self.colour, self.colour, self.colour, self.hue))
        fill = [round(255 * value) for value in spec.mean]  # about zero once it is normalised
        if self.random_ops:
            steps.append(v2.RandAugment(self.random_ops, self.magnitude, fill=fill))
        steps += [v2.RandomErasing(self.erase, value=fill)] if self.erase else []
        return v2.Compose(steps)


class AugmentedDataset(ArrayDataset):
    """Training pictures that differ each time they are seen.

    The chance of a picture depends on (seed, role, its number, how often it came before) alone: it is the same with
    any number of workers and processes, in any batch, and after a run was taken up again.

    Attributes:
        views: 2 where each picture is wanted in two versions.
    """

    def __init__(self, table: Table, labels: Tensor, augment: Augment, spec: InputSpec, seed: int, role: str) -> None:
        super().__init__(table, labels)
        self.transform, self.seed, self.role = augment.transform(spec), seed, role
        self.views = 1

    def __getitem__(self, pick: Pick) -> Batch:
        second = self._view(pick, "second") if self.views == 2 else None
        return Batch(self._view(pick), self.labels[pick.indices], pick.share, second)

    def _view(self, pick: Pick, *which: str) -> Tensor:
        pictures = []
        for index, times in zip(pick.indices.tolist(), pick.times.tolist(), strict=True):
            with forked(self.seed, "augment", self.role, index, times, *which):
                pictures.append(self.transform(self.inputs.picture(index)))
        return torch.stack(pictures)
