"""A small convolutional network for small grey images, quick enough to answer a question in seconds."""

from torch import Tensor, nn

from tlexp.backbones.base import InputSpec, Stage, group_stages, measure_width
from tlexp.errors import UsageError


def _block(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    layer = nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(8, outputs)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), layer, nn.ReLU())


class SmallCNN(nn.Module):
    """Three convolutions with pooling between them and a hidden layer: 16x16 grey images to 4 * width features.

    GroupNorm is the default since its output does not depend on the other images of a batch.

    Args:
        name: the option's name.
        width: channels of the first convolution, a multiple of 8; the later ones have twice and four times as many.
        size: side of the images, a multiple of 4.
        norm: `group` or `batch`.
        dropout: share of the features dropped while training.

    Raises:
        UsageError: for a width, size or norm that cannot be built.
    """

    def __init__(
        self, name: str = "small_cnn", width: int = 32, size: int = 16, norm: str = "group", dropout: float = 0.1
    ) -> None:
        super().__init__()
        if norm not in ("group", "batch"):
            raise UsageError(f"backbone.norm={norm}: choose one of group, batch")
        if width <= 0 or width % 8 or size <= 0 or size % 4:
            raise UsageError(f"backbone.width={width} backbone.size={size}: width a multiple of 8, size one of 4")
        self.name = name
        self.input = InputSpec(channels=1, size=size, mean=(0.5,), std=(0.5,))
        self.stem = _block(1, width, norm)
        self.stage1 = nn.Sequential(nn.MaxPool2d(2), _block(width, 2 * width, norm))
        self.stage2 = nn.Sequential(nn.MaxPool2d(2), _block(2 * width, 4 * width, norm))
        hidden = nn.Linear(4 * width * (size // 4) ** 2, 4 * width)
        self.hidden = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), hidden, nn.ReLU(), nn.Dropout(dropout))
        self.num_features = measure_width(self, self.input)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, 1, size, size) to (batch, 4 * width)."""
        features: Tensor = self.hidden(self.stage2(self.stage1(self.stem(x))))
        return features

    def stages(self) -> list[Stage]:
        """One stage for each child."""
        names = [*dict(self.named_parameters()), *dict(self.named_buffers())]
        return group_stages(self, {name: name.split(".")[0] for name in names}, dict(self.named_children()))
