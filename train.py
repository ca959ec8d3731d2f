"""Train a model from a recipe: `deepspeed train.py RECIPE [section.key=value ...]`.

The same file runs under deepspeed, accelerate launch, torchrun, srun and plain python.
"""

import os
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from config import ConfigError, GroundworkError, RunConfig
from config.command_line import Answered, CommandLine, parse_command_line
from config.objective_schema import WRITE_TEXT
from config.parallel import data_rank_and_size
from config.rendezvous import rank_and_size

if TYPE_CHECKING:
    from data.stream import Stream
    from data.tokenizer import Tokenizer


def main(arguments: list[str]) -> int:
    """Check everything that needs no slow import, then train. Returns the exit code."""
    is_main = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    try:
        command = parse_command_line(arguments, os.environ)
        if command.debug:
            command = with_something_to_read(command, is_main)
        stream, tokenizer = open_data(command.config)
    except Answered as answer:
        return leave(str(answer), 0, is_main)
    except GroundworkError as error:
        return leave(f"error: {error}", 2, is_main or error.alone)
    try:
        return check(command, stream) if command.self_check else train(command, stream, tokenizer)
    except (GroundworkError, OSError) as error:
        speaks = is_main or not getattr(error, "everywhere", False)
        return leave(f"error: {error}", getattr(error, "exit_code", 2), speaks)
    except KeyboardInterrupt:
        return leave("interrupted; the same command continues from the newest checkpoint", 130, is_main)


def open_data(config: RunConfig) -> "tuple[Stream, Tokenizer]":
    """The training data as this rank reads it. Raises DataError, or ConfigError if the model's vocabulary is too small."""
    from data.examples import examples_tokenizer, open_example_stream
    from data.pair_examples import open_pair_stream, pairs_tokenizer
    from data.source import check_vocabulary
    from data.specials import training_tokenizer
    from data.stream import open_stream

    examples, vocab_size = config.data.examples, config.model.vocab_size
    labelled = config.data.examples or config.data.pairs
    if config.data.pairs:
        tokenizer = pairs_tokenizer(config)
    else:
        tokenizer = examples_tokenizer(config) if examples else training_tokenizer(config.data, config.objective)
    if tokenizer.vocab_size > vocab_size:
        source = (labelled.tokenizer or config.run.start_from) if labelled else config.data.datasets[0].path
        raise ConfigError(
            f"model.vocab_size {vocab_size:,} is smaller than the {tokenizer.vocab_size:,} tokens of {source} and objective "
            f"{config.objective.name}: set it to at least that many, best to a multiple of 64"
        )
    if config.run.start_from and not labelled:
        check_vocabulary(tokenizer, config.run.start_from)
    rank, size = data_rank_and_size(config.engine, *rank_and_size(os.environ))
    if examples:
        return open_example_stream(config, tokenizer, rank=rank, world_size=size), tokenizer
    if config.data.pairs:
        return open_pair_stream(config, tokenizer, rank=rank, world_size=size), tokenizer
    stream = open_stream(
        config.data,
        config.batch,
        config.objective,
        seed=config.run.seed,
        vocab_size=vocab_size,
        rank=rank,
        world_size=size,
    )
    return stream, tokenizer


def with_something_to_read(command: CommandLine, is_main: bool) -> CommandLine:
    from data.stand_in import with_stand_in

    ranks = rank_and_size(os.environ)[1]
    return replace(command, config=with_stand_in(command.config, ranks, print if is_main else lambda _: None))


def train(command: CommandLine, stream: "Stream", tokenizer: "Tokenizer") -> int:
    """Connect, resume, loop, close. Returns the exit code."""
    # Slow imports, only now: torch and deepspeed take seconds, and mistakes of the recipe have been reported before.
    from torch.profiler import record_function

    from engine.build import build_engine, open_held_out
    from engine.checkpoint import RunState, load, save
    from engine.debugging import debugger, make_deterministic
    from engine.dist import connected
    from engine.fault import StopRequest, exit_code
    from engine.inspection import Inspector
    from engine.monitor import Monitor
    from engine.runs import open_run, run_documents, summary
    from engine.sample import sample_text

    config, last = command.config, command.config.schedule.steps

    def goes_on(state: RunState) -> bool:
        return state.step < last and not config.validation.has_lost_patience(state.step, state.best_step)

    documents = run_documents(config, tokenizer)
    with ExitStack() as closing_up:
        world = closing_up.enter_context(connected(config.engine.communication_timeout))
        if command.debug_rank is not None:
            closing_up.enter_context(debugger(world, command.debug_rank))
        if command.debug:
            make_deterministic()
        say = print if world.is_main else lambda *_: None
        run = open_run(config, documents, world, say)
        state = run.state
        if goes_on(state):
            held_out = open_held_out(config, world)
            engine, setup = build_engine(config, world, resuming=run.checkpoint is not None)
            if run.checkpoint:
                load(run.checkpoint, engine.deepspeed, world)
            say(setup.describe(config))
            say(stream.describe(setup.derived.total_rows))
            monitor = closing_up.enter_context(
                closing(Monitor(run.folder, config, setup, world, first_step=state.step))
            )
            inspector = Inspector(engine, stream, run.folder, monitor.say)
            steps = closing_up.enter_context(closing(stream.steps(state.cursor)))
            stop = StopRequest(config.checkpoint.reserve_seconds)

        while goes_on(state):
            with inspector.step(state):
                began = time.perf_counter()
                with record_function("data"):
                    micro_batches, cursor = next(steps)
                report = engine.step(state.step, micro_batches)
                tokens = (cursor - state.cursor) * setup.derived.tokens_per_row
                state = replace(state, step=state.step + 1, tokens=state.tokens + tokens, cursor=cursor)
                monitor.step(report, state.tokens, tokens, time.perf_counter() - began)

                stopping = stop.agreed(world)
                if config.validation.is_due(state.step, last):
                    found = engine.validate(held_out)
                    monitor.validation(state.step, found)
                    state = state.judged(found.value(config.validation.metric))
                    if config.monitor.sample_tokens and config.objective.name in WRITE_TEXT:
                        monitor.sample(state.step, sample_text(engine, tokenizer, state.step))
                is_best = config.validation.keep_best and state.best_step == state.step
                if is_best or config.checkpoint.is_due(state.step, last, bool(stopping) or not goes_on(state)):
                    keep = config.checkpoint.keep_last, config.validation.keep_best
                    path = save(run.checkpoints, engine.deepspeed, state, documents, world, *keep)
                if stopping and state.step < last:
                    monitor.say(stop.farewell(stopping, state.step, path if config.checkpoint.every_steps else None))
                    return exit_code(stopping)
    if world.is_main:
        print(summary(config, run.folder, command.recipe, state))
    return 0


def check(command: CommandLine, stream: "Stream") -> int:
    """Compare this configuration's first steps with the plain reference. Returns 0 if they agree, else 1."""
    from engine.dist import connected
    from engine.self_check import self_check

    with connected(command.config.engine.communication_timeout) as world:
        verdict = self_check(command.config, stream, world)
    return leave(verdict.text, 1 if verdict.failures else 0, world.is_main)


def leave(message: str, code: int, speaks: bool) -> int:
    if speaks:
        print(message, file=sys.stderr if code else sys.stdout, flush=True)
    return code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    if "EXIT_CODE_FILE" in os.environ:  # torchrun exits with 1, whatever its ranks say; a batch script reads this
        Path(os.environ["EXIT_CODE_FILE"]).write_text(str(code))
    # Not sys.exit: DeepSpeed holds on to process groups, and their threads may abort or hang an orderly exit.
    os._exit(code)
