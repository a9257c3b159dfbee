"""Fully connected layers on the pixels themselves: the smallest network that has a representation."""

from collections.abc import Sequence

from torch import Tensor, nn

from tlexp.backbones.base import InputSpec, Stage, group_stages
from tlexp.errors import UsageError


class MLP(nn.Module):
    """Linear layers with ReLU on grey images: size * size pixels to the last of `widths`.

    Args:
        name: the option's name.
        size: side of the images.
        widths: units of each layer.

    Raises:
        UsageError: for a size or a width below 1, or no layer.
    """

    def __init__(self, name: str = "mlp", size: int = 8, widths: Sequence[int] = (256, 128)) -> None:
        super().__init__()
        if size < 1 or not widths or min(widths) < 1:
            raise UsageError(f"backbone.size={size} backbone.widths={list(widths)}: sizes and widths are at least 1")
        self.name, self.num_features = name, widths[-1]
        self.input = InputSpec(channels=1, size=size, mean=(0.0,), std=(1.0,))
        inputs = [size * size, *widths[:-1]]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), nn.ReLU()) for before, after in zip(inputs, widths, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, 1, size, size) to (batch, widths[-1])."""
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x)
        return x

    def stages(self) -> list[Stage]:
        """One stage for each layer, the first one called stem."""
        names = ["stem", *(f"layer{index}" for index in range(1, len(self.layers)))]
        return group_stages(self, {name: names[int(name.split(".")[1])] for name, _ in self.named_parameters()}, names)
