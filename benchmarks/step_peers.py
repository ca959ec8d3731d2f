"""One peer of the training-step benchmark, as a process that takes steps when it is told to (see cpu_peers.py)."""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from config import GPTConfig, RunConfig, load_recipe
from config.count import count_parameters
from config.derive import derive
from config.rendezvous import rank_and_size
from data.batch import Batch

LossSum = Callable[[Any, Tensor, Tensor], Tensor]
"""From the model, tokens and labels [B, T] to the summed cross-entropy."""


class Turns:
    """A number comes in on one line: that many steps are taken, and one line of their durations goes out."""

    def __init__(self) -> None:
        # What libraries print must not end up among the answers.
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.wanted = 0
        self.seconds: list[float] = []

    def begin(self) -> bool:
        """Wait for leave to take a step; False when no more are wanted."""
        if not self.wanted:
            line = sys.stdin.readline()
            if not line:
                return False
            self.wanted, self.seconds = int(line), []
        self.start = time.perf_counter()
        return True

    def end(self) -> None:
        self.seconds.append(time.perf_counter() - self.start)
        self.wanted -= 1
        if not self.wanted:
            print(json.dumps(self.seconds), file=self.answers, flush=True)


def synthetic_tokens(config: RunConfig) -> NDArray[np.int64]:
    """One global batch of random tokens, [rows, T + 1], the same for every peer."""
    shape = (config.batch.global_batch_size, config.data.row_length + 1)
    return np.random.default_rng(0).integers(0, config.model.vocab_size, shape)


def gpt(config: RunConfig) -> GPTConfig:
    assert isinstance(config.model, GPTConfig)
    return config.model


def micro_batches(config: RunConfig, rank: int, size: int) -> list[Batch]:
    """What this rank reads of it."""
    rows, micro = np.split(synthetic_tokens(config), size)[rank], config.batch.micro_batch_size
    parts = [rows[first : first + micro] for first in range(0, len(rows), micro)]
    return [Batch(part[:, :-1].copy(), part[:, 1:].copy(), None, config.data.row_length) for part in parts]


def groundwork(config: RunConfig, turns: Turns, source: str) -> None:
    """The engine that train.py drives."""
    from engine.build import build_engine
    from engine.dist import connect

    world = connect(config.engine.communication_timeout)
    engine, _ = build_engine(config, world)
    batches = micro_batches(config, world.rank, world.size)
    step = 0
    while turns.begin():
        engine.step(step, batches)
        step += 1
        turns.end()


def torch_loop(
    config: RunConfig, turns: Turns, model: nn.Module, optimizer: torch.optim.Optimizer, loss_sum: LossSum
) -> None:
    """A loop of plain PyTorch in the recipe's precision; DistributedDataParallel on more than one rank."""
    rank, size = rank_and_size(os.environ)
    wrapped: Any = model
    if size > 1:
        dist.init_process_group("gloo")
        wrapped = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    batches = micro_batches(config, rank, size)
    scale = 1 / sum(batch.tokens_BT.size for batch in batches)
    low_precision = config.engine.precision != "fp32"
    while turns.begin():
        for batch in batches:
            apart = size > 1 and batch is not batches[-1]
            with wrapped.no_sync() if apart else nullcontext():
                with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
                    loss = loss_sum(wrapped, torch.from_numpy(batch.tokens_BT), torch.from_numpy(batch.labels_BT))
                (loss * scale).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        turns.end()


def fused_adamw(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    o = config.optimizer
    return torch.optim.AdamW(
        model.parameters(), lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, weight_decay=o.weight_decay, fused=True
    )


def plain_torch(config: RunConfig, turns: Turns, source: str) -> None:
    """The engine's model and optimiser without the engine."""
    from model import build, compile_blocks, init_weights

    model = build(config.model, loss_chunk_tokens=config.engine.loss_chunk_tokens)
    init_weights(model, config.model, config.run.seed)
    if config.engine.compile == "on":
        compile_blocks(model)
    torch_loop(config, turns, model, fused_adamw(config, model), lambda m, tokens, labels: m(tokens, labels).total)


def nanogpt(config: RunConfig, turns: Turns, source: str) -> None:
    """karpathy/nanoGPT's model, from a checkout. In fp32 as its README trains on CPUs, else with a fused AdamW."""
    spec = importlib.util.spec_from_file_location("nanogpt", Path(source) / "model.py")
    assert spec and spec.loader
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    m, o = gpt(config), config.optimizer
    model = theirs.GPT(
        theirs.GPTConfig(
            block_size=m.max_positions, vocab_size=m.vocab_size, n_layer=m.num_layers, n_head=m.num_heads,
            n_embd=m.hidden_size, dropout=0.0, bias=True,
        )
    )  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) == count_parameters(m).total
    if config.engine.precision == "fp32":
        optimizer = model.configure_optimizers(o.weight_decay, o.lr, (o.beta1, o.beta2), "cpu")
    else:
        optimizer = fused_adamw(config, model)
    run: Any = torch.compile(model) if config.engine.compile == "on" else model
    torch_loop(config, turns, run, optimizer, lambda m, tokens, labels: m(tokens, labels)[1] * labels.numel())


def litgpt(config: RunConfig, turns: Turns, source: str) -> None:
    """Lightning-AI/litgpt's model, from a checkout, with GPT-2's shape: but its positions are rotary, its head untied."""
    sys.path.append(source)
    from litgpt.config import Config  # type: ignore[import-not-found]
    from litgpt.model import GPT  # type: ignore[import-not-found]

    m = gpt(config)
    model = GPT(
        Config(
            block_size=m.max_positions, padded_vocab_size=m.vocab_size, vocab_size=m.vocab_size, n_layer=m.num_layers,
            n_head=m.num_heads, n_embd=m.hidden_size, rotary_percentage=1.0, parallel_residual=False, bias=True,
            norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP", gelu_approximate="tanh",
        )
    )  # fmt: skip
    run: Any = torch.compile(model) if config.engine.compile == "on" else model
    torch_loop(
        config, turns, run, fused_adamw(config, model),
        lambda m, tokens, labels: F.cross_entropy(m(tokens).flatten(0, 1), labels.flatten(), reduction="sum"),
    )  # fmt: skip


def hugging_face(config: RunConfig, turns: Turns, source: str) -> None:
    """The transformers Trainer on the transformers model of the same shape."""
    import transformers

    from model.hf import to_hf_config

    class TakeTurns(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not turns.begin():
                sys.exit()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.end()

    settings = to_hf_config(gpt(config), dtype="float32")
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings))
    assert model.num_parameters() == count_parameters(gpt(config)).total
    # Labels are shifted inside their model.
    tokens = torch.from_numpy(synthetic_tokens(config)[:, :-1])
    rows = [{"input_ids": row, "labels": row} for row in tokens] * config.schedule.steps
    optimizer, size = config.optimizer, rank_and_size(os.environ)[1]
    with TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, use_cpu=True, bf16=True, torch_compile=config.engine.compile == "on", ddp_backend="gloo", report_to="none", disable_tqdm=True,
            save_strategy="no", logging_strategy="no", max_steps=config.schedule.steps,
            per_device_train_batch_size=config.batch.micro_batch_size,
            gradient_accumulation_steps=derive(config, size).accumulation_steps,
            optim="adamw_torch_fused", learning_rate=optimizer.lr, lr_scheduler_type="constant",
            adam_beta1=optimizer.beta1, adam_beta2=optimizer.beta2, adam_epsilon=optimizer.eps,
            weight_decay=optimizer.weight_decay, max_grad_norm=optimizer.grad_clip,
        )  # fmt: skip
        transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[TakeTurns()]).train()


PEERS: dict[str, Callable[[RunConfig, Turns, str], None]] = {
    "groundwork": groundwork,
    "plain_torch": plain_torch,
    "nanogpt": nanogpt,
    "litgpt": litgpt,
    "hugging_face": hugging_face,
}


def main(peer: str, source: str, recipe: str, *overrides: str) -> None:
    """`source`: the checkout of a peer that is not installed, or an empty string."""
    turns = Turns()
    PEERS[peer](load_recipe(recipe, overrides), turns, source)


if __name__ == "__main__":
    main(*sys.argv[1:])
