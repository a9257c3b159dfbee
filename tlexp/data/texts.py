"""Texts and the tokens a text encoder takes of them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tlexp.backbones.base import TextSpec
from tlexp.cache import Cache, digest
from tlexp.data.samples import Indices


class TokenTable:
    """Texts as token ids, padded when they are taken: a batch is as wide as its own longest text.

    Attributes:
        truncated: the number of texts that were longer than the encoder takes.
        key: changes where any of the texts or the tokenizer does.
    """

    slow = False

    def __init__(self, texts: tuple[str, ...], spec: TextSpec, cache: Cache | None = None) -> None:
        def tokens() -> dict[str, Tensor]:
            ids, truncated = spec.tokens(texts)
            flat = torch.tensor([number for row in ids for number in row], dtype=torch.int32)
            ends = torch.tensor([len(row) for row in ids], dtype=torch.int64).cumsum(0)
            return {"ids": flat, "ends": ends, "truncated": torch.tensor(truncated)}

        self.key = digest(spec.fingerprint(), *texts)
        kept = tokens() if cache is None else cache.tensors("tokens", self.key, tokens)
        self.ids, self.ends = kept["ids"], kept["ends"].tolist()
        self.truncated = int(kept["truncated"])
        self.spec = spec

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, indices: Indices) -> dict[str, Tensor]:
        return self.spec.padded([self._row(int(index)) for index in indices])

    def _row(self, index: int) -> list[int]:
        row: list[int] = self.ids[self.ends[index - 1] if index else 0 : self.ends[index]].tolist()
        return row


@dataclass(frozen=True)
class Texts:
    """Texts in memory, and what people know each by; nothing where they are known by their number."""

    texts: tuple[str, ...]
    names: tuple[str, ...] = ()

    kind: ClassVar[str] = "texts"

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Indices) -> "Texts":
        """Returns some of them."""
        names = tuple(self.names[index] for index in indices) if self.names else ()
        return Texts(tuple(self.texts[index] for index in indices), names)

    def where(self, index: int) -> str:
        """Returns its file and row, counted from 1."""
        return self.names[index] if self.names else f"row {index + 1}"

    def identities(self) -> list[str]:
        """Returns the texts themselves."""
        return list(self.texts)

    def prepared(self, spec: TextSpec, cache: Cache | None = None, whole: bool = False) -> TokenTable:
        """Tokenises each of them once."""
        return TokenTable(self.texts, spec, cache)
