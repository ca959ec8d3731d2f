"""Train a model from a recipe: `deepspeed train.py RECIPE [section.key=value ...]`.

The same file runs under deepspeed, accelerate launch, torchrun, srun and plain python.
"""

import os
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

from config import ConfigError, GroundworkError, RunConfig
from config.command_line import Answered, CommandLine, parse_command_line
from config.debug import STEPS_SHOWN
from config.rendezvous import rank_and_size

if TYPE_CHECKING:
    from data.tokenizer import Tokenizer


def main(arguments: list[str]) -> int:
    """Check everything that needs no slow import, then train. Returns the exit code."""
    speaks = os.environ.get("RANK", "0") == "0"
    try:
        return train(parse_command_line(arguments, os.environ))
    except Answered as answer:
        print(answer)
        return 0
    except GroundworkError as error:
        if speaks:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if speaks:
            print("interrupted; the same command continues from the newest checkpoint", file=sys.stderr)
        return 130


def train(command: CommandLine) -> int:
    """Open the data, connect, resume, loop, close."""
    from data.dataset import load_tokenizer
    from data.stream import open_stream
    from data.validation import open_validation

    config = command.config
    tokenizer = load_tokenizer(config.data.datasets[0].path)
    check_vocabulary(config, tokenizer)
    rank, size = rank_and_size(os.environ)
    place = {"vocab_size": config.model.vocab_size, "rank": rank, "world_size": size}
    stream = open_stream(config.data, config.batch, seed=config.run.seed, **place)
    held_out = []
    if config.validation.every_steps:
        held_out = open_validation(
            config.data, rows=config.validation.rows, micro_batch_size=config.batch.micro_batch_size, **place
        )

    # Slow imports, only now: torch and deepspeed take seconds, and every mistake above is reported at once.
    from engine.build import build_engine
    from engine.checkpoint import RunState, load, save
    from engine.debugging import prepare_debugging
    from engine.dist import connect, disconnect
    from engine.fault import StopRequest
    from engine.monitor import Monitor
    from engine.runs import hold_lock, open_run, run_documents, summary
    from engine.sample import continue_prompt

    documents = run_documents(config, tokenizer)
    world = connect(config.engine.communication_timeout)
    say = print if world.is_main else lambda *_: None
    run = open_run(config, documents, world, say)
    if run.state.step >= config.schedule.steps:
        say(summary(config, run.folder, command.recipe))
        return 0
    lock = hold_lock(run.folder, world)

    engine, setup = build_engine(config, world)
    state = load(run.checkpoint, engine.deepspeed, world) if run.checkpoint else run.state
    say(setup.describe(config))
    say(stream.describe(config.schedule.steps))
    monitor = Monitor(run.folder, config, setup, world, first_step=state.step)
    if command.debug:
        prepare_debugging(engine, monitor.say, STEPS_SHOWN)
    stop = StopRequest()

    with closing(monitor), closing(stream.steps(state.cursor)) as steps:
        while state.step < config.schedule.steps:
            began = time.perf_counter()
            micro_batches, cursor = next(steps)
            report = engine.step(state.step, micro_batches)
            state = RunState(state.step + 1, state.tokens + setup.derived.tokens_per_step, cursor)
            monitor.step(report, state.tokens, time.perf_counter() - began)

            stopping = stop.agreed(world)
            if not stopping and config.validation.is_due(state.step, config.schedule.steps):
                monitor.validation(state.step, engine.evaluate(held_out))
                monitor.sample(state.step, continue_prompt(engine, tokenizer, state.step))
            if stopping or config.checkpoint.is_due(state.step, config.schedule.steps):
                path = save(run.checkpoints, engine.deepspeed, state, documents, world, config.checkpoint.keep_last)
            if stopping:
                monitor.say(
                    f"stopped after step {state.step:,} and saved {path}; the same command continues from there"
                )
                break

    lock.close() if lock else None
    if not stopping:
        say(summary(config, run.folder, command.recipe))
    disconnect()
    return 128 + stopping if stopping else 0


def check_vocabulary(config: RunConfig, tokenizer: "Tokenizer") -> None:
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size {config.model.vocab_size:,} is smaller than the {tokenizer.vocab_size:,} tokens of "
            f"{config.data.datasets[0].path}: set it to at least that many, best to a multiple of 64"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
