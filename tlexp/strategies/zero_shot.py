"""The weights as they come: nothing trains."""

from tlexp.backbones.base import Stage
from tlexp.strategies.heads_only import HeadsOnly


class ZeroShot(HeadsOnly):
    """Evaluates the weights that a run starts from with the head that came with them, before any label of the target.

    One epoch at learning rate 0 evaluates them like those of every other run, without changing them. What adaptation
    gains is its difference to this.

    Args:
        name: the option's name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, "target")

    def lr_scale(self, stage: Stage) -> float:
        """Nothing trains."""
        return 0.0
