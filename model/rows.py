"""Rows of tokens that a model continues together, whatever their lengths: a prompt each, then one token each a call.

Letters: B rows, T longest prompt, S longest source, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.cache import KVCache
from model.gpt import GPT
from model.layout import Layout
from model.t5 import T5


class CachedRows:
    """A model's rows and their cache. The model is in evaluation mode, and calls are made without gradients."""

    def __init__(self, model: GPT | T5):
        self.model = model
        layers = model.config.decoder_layers if isinstance(model, T5) else model.config.num_layers
        self.cache = KVCache(layers, source=isinstance(model, T5))
        self.source_lengths: list[int] = []
        self._describe()

    def __len__(self) -> int:
        return len(self.cache.starts)

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    def read(self, prompts: Sequence[Sequence[int]], sources: Sequence[Sequence[int]] = ()) -> Tensor:
        """Take new rows into an empty cache; logits [B, V] of each row's next token. Sources are an encoder's."""
        assert not len(self) and all(prompts), "prompts of at least one token, once"
        lengths = [len(prompt) for prompt in prompts]
        width, ragged = max(lengths), len(set(lengths)) > 1
        tokens_BT = _padded(prompts, left=True).to(self.device)
        layout = Layout.padded_left(lengths, width, self.device) if ragged else None
        if isinstance(self.model, T5):
            self.source_lengths = [len(source) for source in sources]
            source_layout = self._source_layout(max(self.source_lengths))
            source_BS = _padded(sources, left=False).to(self.device)
            hidden_BTD = self.model(
                source_BS, tokens_BT, layout=layout, source_layout=source_layout, cache=self.cache
            )  # fmt: skip
        else:
            hidden_BTD = self.model(tokens_BT, layout=layout, cache=self.cache)
        self.cache.set_lengths(lengths)
        self._describe()
        return self.model.logits(hidden_BTD[:, -1:]).squeeze(1)

    def advance(self, tokens_B: Tensor) -> Tensor:
        """Append a token to each row; logits [B, V] of the next ones."""
        tokens_B1, layout = tokens_B.unsqueeze(1), self._newest()
        if isinstance(self.model, T5):
            hidden_B1D = self.model(
                None, tokens_B1, layout=layout, source_layout=self._seen_source, cache=self.cache
            )  # fmt: skip
        else:
            hidden_B1D = self.model(tokens_B1, layout=layout, cache=self.cache)
        return self.model.logits(hidden_B1D).squeeze(1)

    def join(self, other: "CachedRows") -> None:
        """Take the rows of another behind the own ones."""
        self.cache.join(other.cache)
        self.source_lengths += other.source_lengths
        self._describe()

    def drop(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        self.cache.drop(row)
        if self.source_lengths:
            self.source_lengths[row] = self.source_lengths[-1]
            self.source_lengths.pop()
        self._describe()

    def select(self, rows: Sequence[int]) -> None:
        """Rows become copies of those named; a row may be named several times."""
        self.cache.select(rows)
        if self.source_lengths:
            self.source_lengths = [self.source_lengths[row] for row in rows]
        self._describe()

    def reorder(self, rows: Sequence[int]) -> None:
        """`select` for rows that change places with others of the same source."""
        self.cache.reorder(rows)
        self._describe()

    def _describe(self) -> None:
        """What stays as long as the rows do."""
        starts = self.cache.starts
        self._starts_B1 = torch.tensor(starts, device=self.device).unsqueeze(1) if len(set(starts)) > 1 else None
        layout = self._source_layout(self.cache.source.end) if self.cache.source and starts else None
        if layout is not None:
            seen_BS = layout.positions_BT == torch.arange(layout.positions_BT.shape[1], device=self.device)
            layout = replace(layout, mask_B1TS=seen_BS[:, None, None])
        self._seen_source = layout

    def _newest(self) -> Layout | None:
        """Layout of the newest token of each row; None for rows of one length, which see all of their cache."""
        if self.cache.reserve(1):
            self._describe()
        if self._starts_B1 is None:
            return None
        window, end = getattr(self.model.config, "sliding_window", None), self.cache.end
        places_S = torch.arange(self.cache.first, end + 1, device=self.device)
        seen_BS = places_S >= self._starts_B1
        if window is not None:
            seen_BS &= places_S > end - window
        return Layout.newest(end - self._starts_B1, seen_BS)

    def _source_layout(self, width: int) -> Layout | None:
        """Layout of sources padded to `width`; None if there is no padding."""
        return None if set(self.source_lengths) == {width} else Layout.padded(self.source_lengths, width, self.device)


def _padded(rows: Sequence[Sequence[int]], *, left: bool) -> Tensor:
    """Token ids [B, T], with zeros before or behind the shorter rows."""
    width = max(map(len, rows))
    blanks = ([0] * (width - len(row)) for row in rows)
    return torch.tensor([[*blank, *row] if left else [*row, *blank] for row, blank in zip(rows, blanks, strict=True)])
