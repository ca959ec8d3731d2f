"""One peer of the training-step benchmark, as a process that takes steps when it is told to (see train_step.py)."""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from config import RunConfig, load_recipe
from config.derive import count_parameters, derive
from config.rendezvous import rank_and_size
from data.batch import Batch


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


def micro_batches(config: RunConfig, rank: int, size: int) -> list[Batch]:
    """What this rank reads of it."""
    rows, micro = np.split(synthetic_tokens(config), size)[rank], config.batch.micro_batch_size
    parts = [rows[first : first + micro] for first in range(0, len(rows), micro)]
    return [Batch(part[:, :-1], part[:, 1:], None, config.data.row_length) for part in parts]


def groundwork(config: RunConfig, turns: Turns) -> None:
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


def plain_torch(config: RunConfig, turns: Turns) -> None:
    """The same model and optimiser in a loop of plain PyTorch; DistributedDataParallel on more than one rank."""
    from engine.optimizer import build_optimizer
    from model import build, compile_blocks, init_weights

    rank, size = rank_and_size(os.environ)
    model: Any = build(config.model, loss_chunk_tokens=config.engine.loss_chunk_tokens)
    init_weights(model, config.model, config.run.seed)
    if config.engine.compile == "on":
        compile_blocks(model)
    optimizer = build_optimizer(model, config.optimizer)
    if size > 1:
        dist.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    batches = micro_batches(config, rank, size)
    scale = 1 / sum(batch.labels_BT.size for batch in batches)
    while turns.begin():
        for batch in batches:
            apart = size > 1 and batch is not batches[-1]
            with model.no_sync() if apart else nullcontext():
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model(torch.from_numpy(batch.tokens_BT), torch.from_numpy(batch.labels_BT))
                (loss.total * scale).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        turns.end()


def hugging_face(config: RunConfig, turns: Turns) -> None:
    """The transformers Trainer on the transformers model of the same shape."""
    import transformers

    from model.hf import to_hf_config

    class TakeTurns(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not turns.begin():
                sys.exit()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.end()

    settings = to_hf_config(config.model, dtype="float32")
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings))
    assert model.num_parameters() == count_parameters(config.model).total
    # Labels are shifted inside their model.
    tokens = torch.from_numpy(synthetic_tokens(config)[:, :-1])
    rows = [{"input_ids": row, "labels": row} for row in tokens] * config.schedule.steps
    optimizer, size = config.optimizer, rank_and_size(os.environ)[1]
    with TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, use_cpu=True, bf16=True, ddp_backend="gloo", report_to="none", disable_tqdm=True,
            save_strategy="no", logging_strategy="no", max_steps=config.schedule.steps,
            per_device_train_batch_size=config.batch.micro_batch_size,
            gradient_accumulation_steps=derive(config, size).accumulation_steps,
            optim="adamw_torch_fused", learning_rate=optimizer.lr, lr_scheduler_type="constant",
            adam_beta1=optimizer.beta1, adam_beta2=optimizer.beta2, adam_epsilon=optimizer.eps,
            weight_decay=optimizer.weight_decay, max_grad_norm=optimizer.grad_clip,
        )  # fmt: skip
        transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[TakeTurns()]).train()


PEERS: dict[str, Callable[[RunConfig, Turns], None]] = {
    "groundwork": groundwork,
    "plain_torch": plain_torch,
    "hugging_face": hugging_face,
}


def main(peer: str, recipe: str, *overrides: str) -> None:
    turns = Turns()
    PEERS[peer](load_recipe(recipe, overrides), turns)


if __name__ == "__main__":
    main(*sys.argv[1:])
