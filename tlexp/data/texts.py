"""Texts, and their token ids as a text encoder takes them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tlexp.backbones.base import TextSpec
from tlexp.data.cache import Cache
from tlexp.data.samples import Indices
from tlexp.fingerprint import digest


class TokenStore:
    """Texts as token ids, padded batch by batch to the longest text of the batch.

    Attributes:
        truncated: the number of texts that were longer than the encoder's maximum length.
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
        stored = tokens() if cache is None else cache.tensors("tokens", self.key, tokens)
        self.ids, self.ends = stored["ids"], stored["ends"].tolist()
        self.truncated = int(stored["truncated"])
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
    """Texts in memory, with the location of each; without locations they are known by their row."""

    texts: tuple[str, ...]
    locations: tuple[str, ...] = ()

    kind: ClassVar[str] = "texts"

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Indices) -> "Texts":
        """Returns some of them."""
        locations = tuple(self.locations[index] for index in indices) if self.locations else ()
        return Texts(tuple(self.texts[index] for index in indices), locations)

    def location(self, index: int) -> str:
        """Returns its file and row, counted from 1."""
        return self.locations[index] if self.locations else f"row {index + 1}"

    def stable_ids(self) -> list[str]:
        """Returns the texts themselves."""
        return list(self.texts)

    def materialize(self, spec: TextSpec, cache: Cache | None = None, keep_margins: bool = False) -> TokenStore:
        """Tokenises each of them once."""
        return TokenStore(self.texts, spec, cache)
