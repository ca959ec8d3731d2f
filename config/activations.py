"""Bytes of activations, logits and the head's gradients of one rank's micro-batch, by formula.

What autograd keeps is counted (tests/config/test_activations.py measures it); config/block_memory.py has a block's share.
"""

from dataclasses import dataclass
from functools import cached_property

from config.bert_schema import BertConfig
from config.block_memory import FP32, Arithmetic, BlockMemory, Stack
from config.contrastive_schema import Similarity
from config.objective_schema import MaskedLM, row_shape
from config.schema import RunConfig
from config.supervised_schema import Labelled, Regression
from config.t5_schema import T5Config

INDEX = 8
"""Bytes of one token's number."""


@dataclass(frozen=True)
class Activations:
    """Of one rank's micro-batch. Sequence parallelism divides the tokens."""

    config: RunConfig
    arithmetic: Arithmetic

    def kept(self) -> int:
        """Of all blocks and of what is between them and the head, at the end of the forward pass."""
        policy = self.config.engine.activation_checkpointing
        block = self._block
        per_token = {"none": block.whole, "selective": block.products, "full": block.input}[policy]
        total = sum(self._outside(stack) for stack in self._stacks if stack.source or stack is self._stacks[0])
        for stack in self._stacks:
            total += stack.layers * self._tokens(stack.length) * per_token(stack)
            if policy == "none":
                total += stack.layers * block.of_the_batch(stack.length)
        return total

    def recomputed(self) -> int:
        """Of one block what is computed again in the backward pass."""
        policy = self.config.engine.activation_checkpointing
        if policy == "none":
            return 0
        block = self._block
        return max(
            self._tokens(stack.length) * (block.whole(stack) - (block.products(stack) if policy == "selective" else 0))
            for stack in self._stacks
        )

    def gradients(self) -> int:
        """Gradients of activations that the backward pass of one feed-forward layer holds at a time."""
        model, arithmetic = self.config.model, self.arithmetic
        width = (3 if model.gated else 1) * model.ffn_width // self.config.engine.tensor_parallel
        tokens = max(self._tokens(stack.length) for stack in self._stacks)
        return tokens * (width * arithmetic.product + 2 * model.hidden_size * arithmetic.weight)

    @cached_property
    def predicted_tokens(self) -> int:
        """Tokens that the head works on."""
        shape = row_shape(self.config.objective, self.config.data.row_length)
        tokens = self._tokens(shape.decoder or shape.length)
        if isinstance(self.config.objective, MaskedLM):
            return round(self.config.objective.mask_rate * tokens)
        return 0 if isinstance(self.config.objective, Similarity | Labelled | Regression) else tokens

    def head_kept(self) -> int:
        """The head's gradients, which it computes in the forward pass (model/head.py): of its weights in fp32, unless an
        adapter leaves them frozen, and of its inputs."""
        model, tokens = self.config.model, self.predicted_tokens
        if not tokens:
            return 0
        weights = FP32 * model.vocab_size * model.hidden_size if self.config.adapter.name == "none" else 0
        size = weights + tokens * model.hidden_size * self.arithmetic.product
        if isinstance(model, BertConfig):  # the transform's input, result and activation, and the norm's
            size += tokens * model.hidden_size * (3 * self.arithmetic.product + self.arithmetic.weight)
        return size

    def head_working(self) -> int:
        """What a chunk of logits needs: they, their logarithms in fp32 and gradients, also of the chunk before; and the
        weights in the products' precision."""
        model, tokens, size = self.config.model, self.predicted_tokens, self.arithmetic.product
        if not tokens:
            return 0
        chunks = -(-tokens // self.config.engine.loss_chunk_tokens)
        logits = size * (1 + (size < FP32) + (chunks > 1))
        if not self.arithmetic.compiled:
            logits += FP32 * (1 + (model.logit_softcap is not None))
            # On a CPU softmax reads an fp32 copy, while there is no gradient yet.
            logits += 0 if self.arithmetic.gpu else FP32 - size
        weights = size * model.hidden_size if self.arithmetic.casts else 0
        rows = 2 * tokens * model.hidden_size * size
        return model.vocab_size * (-(-tokens // chunks) * logits + weights) + rows

    def _outside(self, stack: Stack) -> int:
        """Of a stack: its tokens, the embedding's norm and dropout, the final norm, tables of positions, and its source."""
        model, tokens = self.config.model, self._tokens(stack.length)
        embedding = model.hidden_size * self._block.mask(self.arithmetic.weight) if model.dropout else 0
        size = tokens * (INDEX + self._block.norm(model.hidden_size) + embedding)
        size += self._tokens(stack.source) * model.hidden_size * self.arithmetic.weight
        if model.position == "rotary":
            size += FP32 * stack.length * model.head_width
        if isinstance(model, T5Config):  # recomputed blocks also have the bias itself as an input
            recomputed = self.config.engine.activation_checkpointing != "none"
            size += stack.length**2 * (INDEX + FP32 * model.num_heads * recomputed)
        return size

    @cached_property
    def _stacks(self) -> list[Stack]:
        model, shape = self.config.model, row_shape(self.config.objective, self.config.data.row_length)
        if isinstance(model, T5Config):
            return [Stack(model.num_layers, shape.length), Stack(model.decoder_layers, shape.decoder, shape.length)]
        if isinstance(model, BertConfig):
            local = sum(model.is_local(i) for i in range(model.num_layers))
            return [
                Stack(model.num_layers - local, shape.length),
                Stack(local, shape.length, window=model.local_window),
            ]
        return [Stack(model.num_layers, shape.length, window=model.sliding_window)]

    @cached_property
    def _block(self) -> BlockMemory:
        return BlockMemory(self.config, self.arithmetic)

    @cached_property
    def _rows(self) -> int:
        shape = row_shape(self.config.objective, self.config.data.row_length)
        return self.config.batch.micro_batch_size * shape.rows

    def _tokens(self, length: int) -> int:
        return self._rows * length // self.config.engine.sequence_parallel
