"""Vectors of texts from a trained encoder or decoder.

Letters: N texts, B rows, T row length, D dimensions.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config import ConfigError
from config.contrastive_schema import Similarity
from data.passages import padded
from engine.objective import pool
from model import Layout
from tasks.checkpoints import Trained, check_family
from tasks.sentence_layout import Pooling

CPU_BATCH_TOKENS, BATCH_TOKENS = 2_048, 16_384
"""Tokens that the model reads at once, padding included. A CPU's caches hold no more."""
BF16_LENGTHS = 32
"""A row of texts in bfloat16 is filled up to a multiple of so many tokens: oneDNN compiles a product anew for each length. 32
texts of 26 tokens each (6 layers, 384 wide, one core): 92 ms with a new length, 58 with one that it has seen."""


class Embedder:
    """Texts in, vectors out: tokenise, read in batches, pool, cut to `dimensions`, normalise.

    On a CPU the texts of a batch stand behind each other in one row, so that nothing is computed of padding. On a GPU, where
    this has not been measured, they are rows of similar length.
    """

    def __init__(
        self,
        trained: Trained,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        max_tokens: int | None = None,
        batch_tokens: int | None = None,
    ):
        """`pooling` None is the folder's or the objective's own, else the mean for an encoder and the last token for a
        decoder. `dimensions` keeps the first ones, for models trained that way (Matryoshka, arXiv:2205.13147), and
        `normalize` gives vectors length 1; None is as the folder says, else all of them and yes.
        `max_tokens` counts special tokens; None is as many as the model reads. `batch_tokens` None suits the device.

        Raises ConfigError for a family without one state for each token, and for values that the model cannot serve.
        """
        check_family(trained, "embedding", ("bert", "gpt"))
        self.model, self.tokenizer = trained.model, trained.tokenizer
        self.normalize = trained.layout.normalize if normalize is None else normalize
        self.begin, self.end = frame(trained)
        self.pooling = pooling or default_pooling(trained)
        if self.pooling == "cls" and trained.config.family == "gpt":
            raise ConfigError(
                "pooling cls is the first token's state, which in a decoder has seen nothing else: choose last or mean"
            )
        self.width = trained.config.hidden_size
        self.dimensions = choose_dimensions(dimensions, trained.layout.dimensions or self.width)
        self.max_tokens = choose_max_tokens(max_tokens, trained, len(self.begin) + 1 + len(self.end))
        self.packs = self.model.embed_tokens.weight.device.type == "cpu"
        if batch_tokens is not None and batch_tokens < 1:
            raise ConfigError(f"batch_tokens {batch_tokens}: choose at least 1")
        self.batch_tokens = batch_tokens or (CPU_BATCH_TOKENS if self.packs else BATCH_TOKENS)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors [N, D] in the order of the texts, fp32 on the CPU; too long texts are cut."""
        return self.encode_tokens([self.cut(row) for row in self.tokenize(texts)])

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text with the special tokens around it, however long."""
        return [self.framed(ids) for ids in self.tokenizer.encode_batch(texts)]

    def framed(self, ids: list[int]) -> list[int]:
        """A text's ids with the special tokens around them; an empty text of a model without any is the end token."""
        return [*self.begin, *ids, *self.end] or [self.tokenizer.eod_id]

    def cut(self, row: list[int]) -> list[int]:
        """The first `max_tokens` ids of a row, the special tokens at its end kept."""
        if len(row) <= self.max_tokens:
            return row
        return [*row[: self.max_tokens - len(self.end)], *self.end]

    @torch.inference_mode()
    def encode_tokens(self, rows: Sequence[list[int]]) -> Tensor:
        """Vectors [N, D], fp32 on the CPU, of rows of 1 to `max_tokens` ids, special tokens included."""
        vector_ND, lengths = torch.empty(len(rows), self.dimensions), [len(row) for row in rows]
        for numbers in (packs if self.packs else batches)(lengths, self.batch_tokens):
            vector_ND[numbers] = self._encode_batch([rows[number] for number in numbers]).cpu()
        return vector_ND

    def _encode_batch(self, rows: list[list[int]]) -> Tensor:
        vector_BD = (self._read_packed if self.packs else self._read_padded)(rows)[:, : self.dimensions]
        return F.normalize(vector_BD, dim=1) if self.normalize else vector_BD

    def _read_packed(self, rows: list[list[int]]) -> Tensor:
        lengths = [len(row) for row in rows]
        multiple = BF16_LENGTHS if self.model.embed_tokens.weight.dtype == torch.bfloat16 else 1
        blank = -sum(lengths) % multiple
        parts = [*lengths, blank] if blank else lengths
        tokens_1N = torch.tensor([[*chain.from_iterable(rows), *[0] * blank]])
        hidden_1ND = self.model(tokens_1N, layout=Layout.packed(parts) if len(parts) > 1 else None).float()
        texts = zip(hidden_1ND.split(parts, dim=1), torch.tensor(lengths).split(1), strict=False)
        return torch.cat([pool(hidden_1TD, length_1, self.pooling) for hidden_1TD, length_1 in texts])

    def _read_padded(self, rows: list[list[int]]) -> Tensor:
        device, longest = self.model.embed_tokens.weight.device, max(map(len, rows))
        tokens_BT, lengths_B = map(torch.from_numpy, padded([np.array(row, np.int64) for row in rows], longest, 0))
        layout = Layout.padded(lengths_B, longest, device) if lengths_B.min() < longest else None
        hidden_BTD = self.model(tokens_BT.to(device), layout=layout)
        return pool(hidden_BTD.float(), lengths_B.to(device), self.pooling)


def packs(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Numbers of the rows of each batch, in order: as many as have at most `tokens` tokens together, and at least one."""
    pack: list[int] = []
    total = 0
    for number, length in enumerate(lengths):
        if pack and total + length > tokens:
            yield pack
            pack, total = [], 0
        pack.append(number)
        total += length
    if pack:
        yield pack


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Numbers of the rows of each batch, longest rows first: as many as have at most `tokens` tokens, padded to the longest,
    and at least one."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    while order:
        size = max(1, tokens // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def choose_dimensions(wanted: int | None, most: int) -> int:
    """All of a vector's numbers, or the wanted ones. Raises ConfigError if it has fewer."""
    if wanted is not None and not 1 <= wanted <= most:
        raise ConfigError(f"dimensions {wanted}: the model has {most}, choose from 1 to {most}")
    return most if wanted is None else wanted


def choose_max_tokens(wanted: int | None, trained: Trained, shortest: int) -> int:
    """The longest text: as wanted, else as long as the folder allows and the model reads. Raises ConfigError for one that
    holds less than `shortest`, or more than the model reads."""
    positions = trained.config.max_positions
    longest = min(trained.max_tokens or positions, positions) if wanted is None else wanted
    if not shortest <= longest <= positions:
        raise ConfigError(
            f"max_tokens {longest}: choose from {shortest} (one token of text) to the model's {positions} positions"
        )
    return longest


def default_pooling(trained: Trained) -> Pooling:
    """What the folder asks for, what the objective trained, or what suits the family."""
    if trained.layout.pooling:
        return trained.layout.pooling
    if isinstance(trained.objective, Similarity):
        return trained.objective.pooling
    return "last" if trained.config.family == "gpt" else "mean"


def frame(trained: Trained) -> tuple[list[int], list[int]]:
    """Special tokens before and after a text: those around the rows of the objective, or of a Hugging Face tokenizer."""
    if trained.recipe is None:
        return trained.tokenizer.frame
    if trained.config.family == "bert" or isinstance(trained.objective, Similarity):
        begin, end = trained.tokenizer.ids_of(["[CLS]", "[SEP]"])
        return [begin], [end]
    return [], []
