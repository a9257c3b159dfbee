"""Random augmentation of training images: crops, flips, colours, patches; a random stream for each image and pass."""

from typing import Any

import torch
from torch import Tensor

from tlexp.backbones.base import InputSpec
from tlexp.data.batches import ArrayDataset, Batch, Pick
from tlexp.data.images.protocols import ImageStore
from tlexp.errors import UsageError
from tlexp.rng import fork_rng

TRIALS = 8  # images to which a user's recipe is applied before training


class Augment:
    """A recipe of torchvision's v2 transforms; one without any leaves the evaluation's own image.

    Args:
        name: for reports.
        scale: smallest fraction of the image's area that a crop keeps; 1 for the evaluation's crop.
        stretch: largest ratio of a crop's sides.
        flip: probability of a mirror image; 0 where left and right mean something, as in digits.
        colour: strength of the jitter of brightness, contrast and saturation, in [0, 1].
        hue: strength of the jitter of hue, as a fraction of the colour circle.
        random_ops: number of RandAugment operations (Cubuk et al. 2020).
        magnitude: their strength, of 30.
        erase: probability that a patch is erased (Zhong et al. 2020).

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
        fractions = {"scale": scale, "flip": flip, "colour": colour, "erase": erase}
        ranges = [(key, value, 0 <= value <= 1, "must lie in [0, 1]") for key, value in fractions.items()]
        ranges += [
            ("scale", scale, scale > 0, "must be above 0"),
            ("stretch", stretch, stretch >= 1, "must be at least 1"),
            ("hue", hue, 0 <= hue <= 0.5, "must lie in [0, 0.5]"),
            ("random_ops", random_ops, random_ops in range(100), "must be a whole number of operations, or 0"),
            ("magnitude", magnitude, magnitude in range(31), "must be a whole number in [0, 30]"),
        ]
        for key, value, valid, remedy in ranges:
            if not valid:
                raise UsageError(f"augment.{key}={value}: {remedy}")

    def __bool__(self) -> bool:
        return self.crops or bool(self.flip or self.colour or self.hue or self.random_ops or self.erase)

    @property
    def crops(self) -> bool:
        """Whether crops are random, so that images must keep their margins."""
        return self.scale < 1 or self.stretch > 1

    def transform(self, spec: InputSpec) -> Any:
        """Returns what maps an image, uint8 (channels, height, width), to uint8 (channels, size, size).

        Raises:
            UsageError: for colour changes where the channels are not colours.
        """
        from torchvision.transforms import InterpolationMode, v2

        if (self.colour or self.hue or self.random_ops) and spec.channels not in (1, 3):
            remedy = f"changes colours, which {spec.channels} channels are not; use augment=light augment.colour=0"
            raise UsageError(f"augment={self.name}: {remedy}")
        steps: list[Any] = []
        interpolation = InterpolationMode(spec.interpolation)
        if self.crops:
            ratio = (1 / self.stretch, self.stretch)
            # The other interpolations work on Pillow images only.
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


def is_reproducible(augment: Augment, spec: InputSpec) -> bool:
    """Returns whether a recipe draws from the global generators alone, so that a seed determines what it does.

    One of the user's own may have a generator of its own: seen here by applying it twice to each of a few images.
    """
    if type(augment) is Augment:
        return True
    transform, side = augment.transform(spec), max(spec.size, spec.resize or 0) if augment.crops else spec.size

    def augmented() -> list[Tensor]:
        images = []
        for index in range(TRIALS):
            with fork_rng(0, "augment", index):
                image = torch.randint(256, (spec.channels, side, side), dtype=torch.uint8)
                images.append(transform(image))
        return images

    try:
        return all(torch.equal(first, second) for first, second in zip(augmented(), augmented(), strict=True))
    except Exception:  # a recipe that real images fit, and these do not
        return True


class AugmentedDataset(ArrayDataset):
    """Training images that differ each time they are seen.

    The randomness of an image depends on (seed, role, its index, how often it came before) alone: it is the same with
    any number of workers and processes, in any batch, and after a resume.

    Args:
        images: the training images.
        labels: (n,).
        augment: the recipe.
        spec: the backbone's input.
        seed: of the named streams.
        role: whose images they are.
        views: 2 where each image is wanted in two versions.
    """

    def __init__(
        self,
        images: ImageStore,
        labels: Tensor,
        augment: Augment,
        spec: InputSpec,
        seed: int,
        role: str,
        views: int = 1,
    ) -> None:
        super().__init__(images, labels)
        self.transform, self.seed, self.role, self.views = augment.transform(spec), seed, role, views

    def __getitem__(self, pick: Pick) -> Batch:
        second_view = self._view(pick, "second") if self.views == 2 else None
        return Batch(self._view(pick), self.labels[pick.indices], pick.ddp_scale, second_view)

    def _view(self, pick: Pick, *stream: str) -> Tensor:
        images = []
        for index, times in zip(pick.indices.tolist(), pick.times.tolist(), strict=True):
            with fork_rng(self.seed, "augment", self.role, index, times, *stream):
                images.append(self.transform(self.inputs.image(index)))
        return torch.stack(images)
