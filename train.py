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

from config import GroundworkError, RunConfig
from config.command_line import Answered, CommandLine, parse_command_line
from config.objective_schema import WRITE_TEXT
from config.parallel import data_rank_and_size
from config.rendezvous import rank_and_size

if TYPE_CHECKING:
    from data.batch import Batch
    from data.stream import Stream
    from data.tokenizer import Tokenizer
    from engine.checkpoint import RunState
    from engine.dist import World
    from engine.engine import Engine
    from engine.monitor import Monitor
    from engine.runs import Run


def main(arguments: list[str]) -> int:
    """Check everything that needs no slow import, then train. Returns the exit code."""
    is_main = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    try:
        command = parse_command_line(arguments, os.environ)
        if command.debug:
            command = with_something_to_read(command, is_main)
        from data.training import open_training  # heavier than a typo's answer should wait for

        readers = data_rank_and_size(command.config.engine, *rank_and_size(os.environ))
        stream, tokenizer = open_training(command.config, *readers)
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


def with_something_to_read(command: CommandLine, is_main: bool) -> CommandLine:
    from data.stand_in import with_stand_in

    ranks = rank_and_size(os.environ)[1]
    return replace(command, config=with_stand_in(command.config, ranks, print if is_main else lambda _: None))


def train(command: CommandLine, stream: "Stream", tokenizer: "Tokenizer") -> int:
    """Connect, find the run, and unless it is complete, go on with it. Returns the exit code."""
    # Slow imports, only now: torch and deepspeed take seconds, and mistakes of the recipe have been reported before.
    from engine.debugging import debugger, make_deterministic
    from engine.dist import connected
    from engine.fault import exit_code
    from engine.runs import open_run, run_documents, summary

    config, documents = command.config, run_documents(command.config, tokenizer)
    with ExitStack() as closing_up:
        world = closing_up.enter_context(connected(config.engine.communication_timeout))
        if command.debug_rank is not None:
            closing_up.enter_context(debugger(world, command.debug_rank))
        if command.debug:
            make_deterministic()
        run = open_run(config, documents, world, print if world.is_main else lambda *_: None)
        state, stopping = run.state, 0
        if not state.is_over(config):
            state, stopping = take_steps(config, run, documents, world, stream, tokenizer)
    if not state.is_over(config):
        return exit_code(stopping)
    if world.is_main:
        print(summary(config, run.folder, command.again, state))
    return 0


def take_steps(
    config: RunConfig, run: "Run", documents: dict[str, str], world: "World", stream: "Stream", tokenizer: "Tokenizer"
) -> "tuple[RunState, int]":
    """Build, resume, loop. Returns the state after the last step, and why the run was stopped, 0 if it is over."""
    from torch.profiler import record_function

    from engine.build import build_engine, open_held_out
    from engine.checkpoint import load, save
    from engine.fault import StopRequest
    from engine.inspection import Inspector
    from engine.monitor import Monitor
    from engine.scores import bytes_per_target

    state, last, stopping = run.state, config.schedule.steps, 0
    held_out = open_held_out(config, world)
    engine, setup = build_engine(config, world, resuming=run.checkpoint is not None)
    if run.checkpoint:
        load(run.checkpoint, engine.deepspeed, world)
    target_bytes = bytes_per_target(held_out, tokenizer, world)
    with (
        closing(Monitor(run.folder, config, setup, world, state.step, target_bytes)) as monitor,
        closing(stream.steps(state.cursor)) as steps,
    ):
        monitor.say(setup.describe(config))
        monitor.say(stream.describe(setup.derived.total_rows))
        inspector = Inspector(engine, stream, run.folder, monitor.say)
        stop = StopRequest(config.checkpoint.reserve_seconds)
        while not stopping and not state.is_over(config):
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
                    state = validate(config, state, engine, held_out, tokenizer, monitor)
                is_best = config.validation.keep_best and state.best_step == state.step
                if is_best or config.checkpoint.is_due(state.step, last, bool(stopping) or state.is_over(config)):
                    keep = config.checkpoint.keep_last, config.validation.keep_best
                    path = save(run.checkpoints, engine.deepspeed, state, documents, world, *keep)
        if not state.is_over(config):
            monitor.say(stop.farewell(stopping, state.step, path if config.checkpoint.every_steps else None))
    return state, stopping


def validate(
    config: RunConfig,
    state: "RunState",
    engine: "Engine",
    held_out: "list[Batch]",
    tokenizer: "Tokenizer",
    monitor: "Monitor",
) -> "RunState":
    """The state after a validation, which the monitor records with a sample of what the model writes."""
    from engine.sample import sample_text

    found = engine.validate(held_out)
    monitor.validation(state.step, found)
    if config.monitor.sample_tokens and config.objective.name in WRITE_TEXT:
        monitor.sample(state.step, sample_text(engine, tokenizer, state.step))
    return state.judged(found, config.validation.metric)


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
