"""Bytes that a block keeps for its backward pass, for each token, by formula.

Letters: D width, H query heads, K key heads, E head size, F feed-forward width, S keys, V vocabulary, N tokens. What is
counted is what autograd keeps (tests/config/test_activations.py measures it). With GPT's D = HE = KE, F = 4D, 2 bytes a
number and dropout, a GPU's fused kernels keep the 34·s·b·h of Korthikanti et al. (arXiv:2205.05198, section 4.1,
without the scores, which attention does not keep).
"""

from dataclasses import dataclass
from typing import NamedTuple

from config.adapter_schema import ATTENTION, Houlsby, LowRank, target_matrices
from config.schema import RunConfig
from config.t5_schema import T5Config

FP32 = 4
"""Bytes of one number."""
SHORT_ROW = 512
"""Tokens up to which attention in bf16 is two matrix products on a CPU (model/kernels/sdpa.py)."""
BLOCKS = 8
"""Windows in a row from which attention is cut into blocks on a CPU (model/kernels/local.py)."""


@dataclass(frozen=True)
class Arithmetic:
    """In which numbers and with which kernels a run computes."""

    product: int
    """Bytes of a number in matrix products."""
    weight: int
    """Bytes of a weight, and so of the residual stream and of what norms compute in."""
    gpu: bool
    compiled: bool

    @property
    def casts(self) -> bool:
        """Whether autocast turns fp32 inputs into bf16 copies."""
        return self.product < self.weight

    @property
    def fused(self) -> bool:
        """Whether norms and dropout keep as little as possible; a CPU's own operators keep more."""
        return self.gpu or self.compiled


class Stack(NamedTuple):
    """Blocks that keep the same."""

    layers: int
    length: int
    """Tokens of a row."""
    source: int = 0
    """Tokens of the row that cross-attention looks at; 0 without it."""
    window: int | None = None
    """Tokens that a token sees to one side; None: all."""


@dataclass(frozen=True)
class BlockMemory:
    """Of a recipe's blocks on one rank. Tensor parallelism divides the heads and F."""

    config: RunConfig
    arithmetic: Arithmetic

    def input(self, stack: Stack) -> int:
        """Of one token."""
        return self.config.model.hidden_size * self.arithmetic.weight

    def products(self, stack: Stack) -> int:
        """Of one token: a block's input, and the results of its products and attention."""
        model, (queries, keys) = self.config.model, self._heads
        ffn = (2 if model.gated else 1) * model.ffn_width // self._slices
        numbers = 2 * queries + 2 * keys + ffn + 2 * model.hidden_size
        if stack.source:
            numbers += 2 * queries + model.hidden_size + 2 * keys * stack.source // stack.length
        return self.input(stack) + numbers * self.arithmetic.product + self._scores(stack.length, bmm=True)

    def whole(self, stack: Stack) -> int:
        """Of one token everything that a block keeps."""
        cross = self._cross(stack) if stack.source else 0
        return self._attention(stack) + self._ffn() + cross + self._adapter(stack)

    def of_the_batch(self, length: int) -> int:
        """Of one block, whatever the number of rows: the mask of an attention that has one."""
        if self.config.engine.kernel == "reference":
            return length * length
        kind = self._kind(length, bias=True)
        if not self._biased or kind == "products":
            return 0
        heads = self.config.model.num_heads * self.arithmetic.product if kind == "flash" else 1
        return heads * length * length

    def norm(self, width: int) -> int:
        """A norm's input and statistics."""
        if self.config.model.norm == "layernorm":
            return width * self.arithmetic.weight + 2 * FP32
        return width * self._rms_norm + FP32

    @property
    def _rms_norm(self) -> int:
        """Of one element. A CPU's RMSNorm also keeps what it multiplies with weights that are trained, all in fp32."""
        if self.arithmetic.fused:
            return self.arithmetic.weight
        return FP32 * (2 if self.config.adapter.name == "none" else 1)

    def mask(self, number: int) -> int:
        """Bytes of an element of dropout's mask."""
        return 1 if self.arithmetic.fused else number

    def _attention(self, stack: Stack) -> int:
        """Its norm, the inputs of its products, queries, keys, values and output, and its dropout."""
        queries, keys = self._heads
        size = self.norm(self.config.model.hidden_size) + self._inputs("q_proj", "k_proj", "v_proj")
        if self.config.model.qk_norm:
            # An RMSNorm of each head; autocast makes an fp32 copy of its input.
            size += (queries + keys) * self._rms_norm
        length, copies = self._seen(stack)
        masked = copies > 1 or self.config.data.document_masking
        if masked and not self.arithmetic.gpu and self._kind(length, bias=True) == "flash":
            size += FP32 * length  # SDPA's mask, as numbers
        return size + self._mix(length, queries, keys * copies) + self._dropout(self.config.model.hidden_size)

    def _cross(self, stack: Stack) -> int:
        """The same of attention to a source, whose keys and values are divided among the target's tokens."""
        queries, keys = self._heads
        size = self.norm(self.config.model.hidden_size) + self._inputs("q_proj")
        shared = stack.source / stack.length
        copies = 2 * self.config.model.hidden_size * self.arithmetic.product if self._copies(2) == 2 else 0
        size += int(shared * copies) + self._mix(stack.source, queries, int(shared * keys), bias=False)
        return size + self._dropout(self.config.model.hidden_size)

    def _mix(self, keys_length: int, queries: int, keys: int, bias: bool = True) -> int:
        """Queries, keys, values and the attention's output, and what the kernel keeps beside them."""
        product, kind = self.arithmetic.product, self._kind(keys_length, bias)
        size = (2 * queries + 2 * keys) * product + self._scores(keys_length, bias=bias)
        if kind == "flash":
            return size + FP32 * self.config.model.num_heads // self._slices
        return size + (queries + 2 * keys) * (FP32 - product) * (kind == "math")

    def _kind(self, length: int, bias: bool) -> str:
        """flash keeps no scores; products (model/kernels/sdpa.py) and math (PyTorch's fallback on a CPU) do."""
        model, engine = self.config.model, self.config.engine
        if engine.kernel == "reference":
            return "math"
        if model.attention_softcap is not None and (engine.kernel == "sdpa" or not self.arithmetic.gpu):
            return "products"
        if self.arithmetic.gpu:
            return "flash"
        if self.arithmetic.product == 2 and length <= SHORT_ROW:
            return "products"
        trained_bias = bias and self._biased and self.config.adapter.name == "none"
        return "math" if model.dropout or trained_bias else "flash"

    def _seen(self, stack: Stack) -> tuple[int, int]:
        """Keys that a token meets, and how often each is copied: a CPU cuts windows into blocks (model/kernels/local.py)."""
        window = stack.window
        if window is None or self.arithmetic.gpu or stack.length % window or stack.length < BLOCKS * window:
            return stack.length, 1
        blocks = 2 if self.config.model.family == "gpt" else 3
        return blocks * window, blocks

    def _scores(self, length: int, bias: bool = True, bmm: bool = False) -> int:
        """Of one token: attention weights, with dropout also its mask and their product. `bmm`: one result alone."""
        kind = self._kind(length, bias)
        if kind == "flash" or (bmm and kind == "products"):
            return 0
        number = FP32 if kind == "math" else self.arithmetic.product
        copies = 1 if bmm or not self.config.model.dropout else 3
        return self.config.model.num_heads // self._slices * length * number * copies

    def _ffn(self) -> int:
        """Its norm, the inputs of its products, what comes before and after the activation, and its dropout."""
        model, product = self.config.model, self.arithmetic.product
        copies = 1 if model.activation == "relu" else 2
        if model.gated:
            copies = 3 if self.arithmetic.compiled else 4  # gate, up, their product; the activated gate
        if model.activation != "relu" and not self._learning("down_proj"):
            copies -= 1  # what only the last matrix needs
        size = copies * product + (self.mask(product) + product if model.ffn_dropout else 0)
        inputs = self.norm(model.hidden_size) + self._inputs("gate_proj", "up_proj")
        return inputs + size * model.ffn_width // self._slices + self._dropout(model.hidden_size)

    def _adapter(self, stack: Stack) -> int:
        """Inputs of an update's second factors; of a bottleneck those of both layers and of its activation."""
        adapter, cross, product = self.config.adapter, bool(stack.source), self.arithmetic.product
        if isinstance(adapter, Houlsby):
            return (2 + cross) * (self.config.model.hidden_size + 2 * adapter.bottleneck) * product
        if isinstance(adapter, LowRank):
            names = target_matrices(adapter, self.config.model)
            return sum(1 + (cross and name in ATTENTION) for name in names) * adapter.rank * product
        return 0

    def _learning(self, *names: str) -> int:
        """How many of a block's matrices are trained, or have an update that is, so that their inputs are kept."""
        adapter, model = self.config.adapter, self.config.model
        if adapter.name == "none":
            return len(names) - (not model.gated and "gate_proj" in names)
        return sum(isinstance(adapter, LowRank) and name in target_matrices(adapter, model) for name in names)

    def _copies(self, products: int) -> int:
        """Copies of one input of several products: autocast makes one for each."""
        return products if self.arithmetic.casts and not self.arithmetic.compiled else 1

    def _inputs(self, *names: str) -> int:
        """Of matrices that share their input."""
        learning = self._learning(*names)
        return self._copies(learning) * self.config.model.hidden_size * self.arithmetic.product if learning else 0

    def _dropout(self, width: int) -> int:
        return width * self.mask(self.arithmetic.product) if self.config.model.dropout else 0

    @property
    def _heads(self) -> tuple[int, int]:
        """Numbers of one token's queries and of its keys, of this rank."""
        model = self.config.model
        queries, keys = (heads * model.head_width // self._slices for heads in (model.num_heads, model.kv_heads))
        return queries, keys

    @property
    def _slices(self) -> int:
        return self.config.engine.tensor_parallel

    @property
    def _biased(self) -> bool:
        return isinstance(self.config.model, T5Config)
