"""Texts and the tokens a text encoder takes of them."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tlexp.backbones.base import TextSpec
from tlexp.data.samples import Indices


class TokenTable:
    """Texts as token ids, padded when they are taken: a batch is as wide as its own longest text.

    Attributes:
        truncated: the number of texts that were longer than the encoder takes.
    """

    def __init__(self, texts: tuple[str, ...], spec: TextSpec) -> None:
        self.ids, self.truncated = spec.tokens(texts)
        self.spec = spec

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, indices: Indices) -> dict[str, Tensor]:
        return self.spec.padded([self.ids[index] for index in indices])


@dataclass(frozen=True)
class Texts:
    """Texts in memory."""

    texts: tuple[str, ...]

    kind: ClassVar[str] = "texts"

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Indices) -> "Texts":
        """Returns some of them."""
        return Texts(tuple(self.texts[index] for index in indices))

    def prepared(self, spec: TextSpec) -> TokenTable:
        """Tokenises each of them once."""
        return TokenTable(self.texts, spec)
