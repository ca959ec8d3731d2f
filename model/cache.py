"""Keys and values of the tokens that rows of a generation have already seen.

Letters: L layers, B rows, T new tokens, K key-value heads, E head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class LayerCache:
    """One block's part of a KVCache; `source` is its part of the source's."""

    def __init__(self, cache: "KVCache", number: int):
        self.cache, self.number = cache, number
        self.source = cache.source.layers[number] if cache.source else None

    def append(self, k_BTKE: Tensor, v_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Store T tokens of every row; return views of all keys and values so far."""
        cache = self.cache
        if self.number == 0:
            cache.make_room(k_BTKE, v_BTKE)
        rows, end = slice(len(cache.starts)), cache.end + k_BTKE.shape[1]
        cache.keys[self.number, rows, cache.end : end] = k_BTKE
        cache.values[self.number, rows, cache.end : end] = v_BTKE
        if self.number == len(cache.layers) - 1:
            cache.end = end
        seen = slice(cache.first, end)
        return cache.keys[self.number, rows, seen], cache.values[self.number, rows, seen]

    def stored(self) -> tuple[Tensor, Tensor]:
        """Views of all keys and values so far."""
        rows, seen = slice(len(self.cache.starts)), slice(self.cache.first, self.cache.end)
        return self.cache.keys[self.number, rows, seen], self.cache.values[self.number, rows, seen]


class KVCache:
    """Keys and values of all blocks, [L, rows, columns, K, E], with room to grow in both directions.

    Rows of different lengths end at the same column, so the newest tokens of all are written, and their distances to
    earlier ones counted, in one go. A row's tokens lie in the columns from `starts[row]` to `end`; what a row has before
    is finite and has to be masked. The first forward pass takes prompts, later ones a single token of each row.

    With `source`, the keys and values of an encoder's sources are kept too; their rows begin at the same column.
    """

    keys: Tensor
    values: Tensor
    room = 128
    """Columns of new buffers beyond the prompts': so many tokens are written before anything is copied."""

    def __init__(self, num_layers: int, *, source: bool = False):
        self.source = KVCache(num_layers) if source else None
        if self.source:
            self.source.room = 0
        self.layers = [LayerCache(self, number) for number in range(num_layers)]
        self.starts: list[int] = []
        self.first = self.end = 0

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return self.end - self.first

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Declare the columns before the last `lengths` ones of each row padding."""
        self._set_starts([self.end - length for length in lengths])

    def make_room(self, k_BTKE: Tensor, v_BTKE: Tensor) -> None:
        """Columns for T more tokens of each row; the first time, buffers for such rows."""
        rows, more = k_BTKE.shape[:2]
        if self.starts:
            self.reserve(more)
        else:
            shape = (len(self.layers), rows, more + self.room)
            self.keys, self.values = (x.new_zeros(*shape, *x.shape[2:]) for x in (k_BTKE, v_BTKE))
            self._set_starts([0] * rows)

    def reserve(self, more: int) -> bool:
        """Columns for `more` tokens of each row; whether the columns of those in the cache moved for it."""
        if self.end + more <= self.keys.shape[2]:
            return False
        self._rebuild(self.keys.shape[1], 2 * (self.length + more), self.length)
        return True

    def join(self, other: "KVCache") -> None:
        """Take the rows of another cache behind the own ones."""
        if self.source and other.source:
            self.source._append_rows(other.source, shift=0)
        self._append_rows(other, shift=None)

    def drop(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        if self.source:
            self.source.drop(row)
        last = self.starts[-1]
        if row < len(self.starts) - 1:
            for buffer in (self.keys, self.values):
                buffer[:, row, last : self.end] = buffer[:, len(self.starts) - 1, last : self.end]
        self._set_starts([*self.starts[:row], last, *self.starts[row + 1 :]][: len(self.starts) - 1])

    def select(self, rows: Sequence[int]) -> None:
        """Rows become copies of those named, of the source too; a row may be named several times."""
        if self.source:
            self.source.reorder(rows)
        self.reorder(rows)

    def reorder(self, rows: Sequence[int]) -> None:
        """`select` that leaves the source alone, for rows that change places within one source."""
        index = torch.tensor(rows, device=self.keys.device)
        kept = [buffer[:, :, self.first : self.end].index_select(1, index) for buffer in (self.keys, self.values)]
        if len(rows) > self.keys.shape[1]:
            self._rebuild(len(rows), self.keys.shape[2], self.end)
        for buffer, values in zip((self.keys, self.values), kept, strict=True):
            buffer[:, : len(rows), self.first : self.end] = values
        self._set_starts([self.starts[row] for row in rows])

    def _set_starts(self, starts: list[int]) -> None:
        self.starts, self.first = starts, min(starts, default=self.end)

    def _append_rows(self, other: "KVCache", shift: int | None) -> None:
        """Rows of `other` so that its columns move by `shift`, or so that the ends meet."""
        if not self.starts:
            self.keys, self.values, self.end = other.keys, other.values, other.end
            return self._set_starts(other.starts)
        rows, new = len(self.starts), len(other.starts)
        slots, moves = self.keys.shape[1], shift is None
        end = max(self.end, other.length if moves else other.end)
        if rows + new > slots or end > self.end:
            slots = slots if rows + new <= slots else max(2 * slots, rows + new)
            if moves:  # away from the columns of rows that have left
                end = max(self.length, other.length)
            self._rebuild(slots, 2 * end, end, move=moves)
        shift = self.end - other.end if shift is None else shift
        begin, end = other.first + shift, other.end + shift
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            mine[:, rows : rows + new, begin:end] = theirs[:, :new, other.first : other.end]
        self._set_starts(self.starts + [start + shift for start in other.starts])

    def _rebuild(self, slots: int, columns: int, end: int, move: bool = True) -> None:
        """New buffers whose rows end at `end`: moved there, or prolonged by empty columns."""
        rows, shift = min(slots, len(self.starts)), end - self.end if move else 0
        old, new = slice(self.first, self.end), slice(self.first + shift, self.end + shift)
        for name in ("keys", "values"):
            buffer: Tensor = getattr(self, name)
            larger = buffer.new_zeros(buffer.shape[0], slots, columns, *buffer.shape[3:])
            larger[:, :rows, new] = buffer[:, :rows, old]
            setattr(self, name, larger)
        self.end = end
        self._set_starts([start + shift for start in self.starts])
