"""Continue many prompts together; they may join and leave between any two tokens (Orca, Yu et al. 2022, OSDI).

Letters: B rows, T tokens of the longest prompt, S tokens cached, V vocabulary, K key-value heads, E head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from model.cache import KVCache, LayerCache
from model.generation import inference, next_tokens
from model.gpt import GPT
from model.kernels import choose_kernel
from model.layout import Layout

BLOCK = 64
"""Tokens by which the cache grows."""


@dataclass(eq=False)
class Row:
    """One prompt and how to continue it."""

    prompt: list[int]
    temperature: float = 1.0
    """0 takes the most probable token."""
    top_p: float | None = None
    generator: torch.Generator | None = None
    """Of this row alone, so that what it draws does not depend on its neighbours; None: the shared one."""
    token: int = field(default=-1, init=False)
    """The newest token."""


class ContinuousBatch:
    """Rows of one decoder, each at its own place, that advance by one token in each forward pass."""

    def __init__(self, model: GPT):
        self.model, self.spec = model, model.spec
        self.device = model.embed_tokens.weight.device
        self.rows: list[Row] = []
        self.lengths_B = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.caches: list[_RaggedLayer] = [_RaggedLayer() for _ in model.blocks]
        use_masked_kernel(model)

    def join(self, rows: Sequence[Row]) -> None:
        """Read the prompts in one padded forward pass; each row then has its first token."""
        lengths, longest = [len(row.prompt) for row in rows], max(len(row.prompt) for row in rows)
        tokens_BT = torch.tensor([row.prompt + [0] * (longest - len(row.prompt)) for row in rows], device=self.device)
        cache = KVCache(len(self.caches), longest)
        lengths_B = torch.tensor(lengths, device=self.device)
        with inference(self.model):
            layout = None if min(lengths) == longest else Layout.padded(lengths, longest, self.device)
            hidden_BTD = self.model(tokens_BT, layout=layout, cache=cache)
            last_B1D = hidden_BTD[torch.arange(len(rows), device=self.device), lengths_B - 1].unsqueeze(1)
            self._choose(rows, self.model.logits(last_B1D).squeeze(1))
        for ours, new in zip(self.caches, cache.layers, strict=True):
            ours.add_rows(*new.stored())
        self.rows += rows
        self.lengths_B = torch.cat([self.lengths_B, lengths_B])

    def step(self) -> None:
        """One more token for each row."""
        tokens_B1 = torch.tensor([[row.token] for row in self.rows], device=self.device)
        layout = self._layout()
        for cache in self.caches:
            cache.lengths_B, cache.longest = self.lengths_B, layout.mask_B1TS.shape[-1]  # type: ignore[union-attr]
        with inference(self.model):
            hidden_B1D = self.model(tokens_B1, layout=layout, cache=_Cache(self.caches))
            self.lengths_B = self.lengths_B + 1
            self._choose(self.rows, self.model.logits(hidden_B1D).squeeze(1))

    def leave(self, rows: Sequence[Row]) -> None:
        """Forget rows and what is cached of them."""
        leaving = set(map(id, rows))
        kept = [number for number, row in enumerate(self.rows) if id(row) not in leaving]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[number] for number in kept]
        kept_B = torch.tensor(kept, dtype=torch.int64, device=self.device)
        self.lengths_B = self.lengths_B[kept_B]
        longest = int(self.lengths_B.max()) if kept else 0
        for cache in self.caches:
            cache.keep_rows(kept_B, longest)

    def _layout(self) -> Layout:
        """Each row's token at its own position, seeing the row's own past."""
        keys_S = torch.arange(int(self.lengths_B.max()) + 1, device=self.device)
        visible_BS = keys_S <= self.lengths_B[:, None]
        if self.spec.window is not None:
            visible_BS &= keys_S > self.lengths_B[:, None] - self.spec.window
        count = len(self.rows)
        whole = Layout.whole_rows(count, 1, self.device)
        return Layout(whole.cu_seqlens, 1, self.lengths_B[:, None], whole.document_ids_BT, visible_BS[:, None, None, :])

    def _choose(self, rows: Sequence[Row], logits_BV: Tensor) -> None:
        likeliest = logits_BV.argmax(-1).tolist()
        for number, row in enumerate(rows):
            if row.temperature == 0:
                row.token = likeliest[number]
            else:
                drawn = next_tokens(logits_BV[number : number + 1], row.temperature, None, row.top_p, row.generator)
                row.token = int(drawn)


def use_masked_kernel(model: GPT) -> None:
    """Attention by a kernel that takes a mask, which rows at different places need."""
    weight = model.embed_tokens.weight
    kernel = choose_kernel(model.config, weight.device, weight.dtype, document_masking=True, wanted="sdpa").value
    model.kernel = kernel
    for block in model.blocks:
        block.attention.kernel = kernel  # type: ignore[union-attr]


class _Cache(KVCache):
    """One cache for each block, each of whose rows has its own length."""

    def __init__(self, layers: list["_RaggedLayer"]):
        self.layers = list[LayerCache](layers)


class _RaggedLayer(LayerCache):
    """Keys and values [B, S, K, E] of one block; what lies beyond a row's own length is never seen."""

    def __init__(self) -> None:
        super().__init__(capacity=0)
        self.lengths_B: Tensor | None = None
        self.longest = 0

    def append(self, k_B1KE: Tensor, v_B1KE: Tensor) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None and self.lengths_B is not None
        if self.keys.shape[1] < self.longest:
            self.keys, self.values = (_lengthen(x, self.longest + BLOCK - 1) for x in (self.keys, self.values))
        rows_B = torch.arange(len(k_B1KE), device=k_B1KE.device)
        self.keys[rows_B, self.lengths_B] = k_B1KE.squeeze(1)
        self.values[rows_B, self.lengths_B] = v_B1KE.squeeze(1)
        return self.keys[:, : self.longest], self.values[:, : self.longest]

    def add_rows(self, k_BTKE: Tensor, v_BTKE: Tensor) -> None:
        if self.keys is None or self.values is None or not len(self.keys):
            self.keys, self.values = k_BTKE, v_BTKE
            return
        length = max(self.keys.shape[1], k_BTKE.shape[1])
        self.keys = torch.cat([_lengthen(self.keys, length), _lengthen(k_BTKE, length)])
        self.values = torch.cat([_lengthen(self.values, length), _lengthen(v_BTKE, length)])

    def keep_rows(self, kept_B: Tensor, length: int) -> None:
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self.keys[kept_B, :length], self.values[kept_B, :length]


def _lengthen(x_BSKE: Tensor, length: int) -> Tensor:
    return pad(x_BSKE, (0, 0, 0, 0, 0, length - x_BSKE.shape[1]))
