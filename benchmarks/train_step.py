"""A training step beside its peers, at equal model, batch and optimiser: `python -m benchmarks.train_step`.

Every peer is one process a rank (step_peers.py), which builds its model and waits; then the peers take turns of a few
steps, in rounds, so that a slow minute of the machine falls on all of them. Random tokens: no corpus is needed.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from tempfile import TemporaryFile
from typing import IO

from config import GroundworkError, RunConfig, load_recipe
from config.derive import derive

SETTINGS = (
    "batch.global_batch_size=32", "batch.micro_batch_size=8", "engine.precision=bf16_autocast",
    "schedule.steps=10000", "monitor.peak_tflops=1",
)  # fmt: skip
"""Laid over the recipe, below the overrides of the command line."""
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Peer:
    """One row of the table."""

    label: str
    function: str
    """Name in step_peers.PEERS."""
    overrides: tuple[str, ...] = ("engine.compile=off",)
    needs: tuple[str, ...] = ("torch",)
    """Packages it cannot run without."""


PLAIN = Peer("plain torch", "plain_torch")
STAGES = tuple(
    Peer(f"Groundwork, ZeRO {stage}", "groundwork", (f"engine.ds_config=zero{stage}", "engine.compile=off"))
    for stage in range(4)
)
TRAINER = Peer("Hugging Face Trainer", "hugging_face", needs=("transformers", "accelerate"))
COMPILED = (
    Peer("plain torch, compiled", "plain_torch", ("engine.compile=on",)),
    Peer("Groundwork, ZeRO 1, compiled", "groundwork", ("engine.ds_config=zero1", "engine.compile=on")),
)


class PeerFailure(Exception):
    """A peer's process ended; the text is the last line it wrote."""


class Group:
    """The running processes of one peer, one for each rank."""

    def __init__(self, peer: Peer, recipe: str, overrides: list[str], ranks: int):
        self.errors: IO[str] = TemporaryFile("w+")  # noqa: SIM115 (closed with the group)
        command = [sys.executable, "-m", "benchmarks.step_peers", peer.function, recipe, *overrides, *peer.overrides]
        port = _free_port()
        self.processes = [
            subprocess.Popen(
                command, env=_environment(rank, ranks, port), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            )
            for rank in range(ranks)
        ]  # fmt: skip

    def take(self, steps: int) -> list[float]:
        """Seconds of each of `steps` steps, of the slowest rank."""
        for process in self.processes:
            assert process.stdin
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        answers = [process.stdout.readline() for process in self.processes if process.stdout]
        if not all(answers):
            raise PeerFailure(self._last_words())
        return [max(seconds) for seconds in zip(*map(json.loads, answers), strict=True)]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        self.errors.close()

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return lines[-1] if lines else "ended without a message"


def measure(
    peers: list[Peer], recipe: str, overrides: list[str], ranks: int, rounds: int, steps: int
) -> tuple[dict[Peer, list[float]], dict[Peer, str]]:
    """Seconds of every step of each peer, and why a peer has none. The first turn of each, its warm-up, does not count."""
    seconds: dict[Peer, list[float]] = {peer: [] for peer in peers}
    problems = {peer: f"needs {', '.join(missing)}" for peer in peers if (missing := _missing(peer))}
    groups: dict[Peer, Group] = {}
    with ExitStack() as stack:
        for turn in range(1 + rounds):
            for peer in [peer for peer in peers if peer not in problems]:
                if turn == 0:
                    groups[peer] = stack.enter_context(closing(Group(peer, recipe, overrides, ranks)))
                try:
                    taken = groups[peer].take(steps if turn else WARM_UP_STEPS)
                except PeerFailure as failure:
                    problems[peer] = f"failed: {failure}"
                else:
                    seconds[peer] += taken if turn else []
    return seconds, problems


def table(config: RunConfig, ranks: int, seconds: dict[Peer, list[float]], problems: dict[Peer, str]) -> str:
    """Medians as a Markdown table. The ratio is to plain torch: below 1 is faster."""
    tokens, reference = derive(config, ranks).tokens_per_step, seconds[PLAIN] and median(seconds[PLAIN])
    lines = [f"| {ranks} rank{'s'[: ranks - 1]} | ms per step | tokens/s | × plain torch |", "|---|---|---|---|"]
    for peer, values in seconds.items():
        if peer in problems:
            lines.append(f"| {peer.label} | {problems[peer]} | | |")
            continue
        middle = median(values)
        ratio = f"{middle / reference:.2f}" if reference else ""
        lines.append(f"| {peer.label} | {1e3 * middle:,.0f} | {tokens / middle:,.0f} | {ratio} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--ranks", choices=["1", "2", "both"], default="both")
    parser.add_argument("--compile", action="store_true", help="measure the compiled step as well")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps of one turn")
    parser.add_argument("--recipe", default="gpt_quickstart", help="where the model and the optimiser come from")
    parser.add_argument("--only", nargs="+", default=[], help="peers whose label contains one of these words")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    overrides = [*SETTINGS, *options.overrides]
    peers = [PLAIN, *STAGES, TRAINER, *(COMPILED if options.compile else ())]
    chosen = [peer for peer in peers if not options.only or any(word in peer.label for word in options.only)]
    try:
        config = load_recipe(options.recipe, overrides)
        for ranks in (1, 2) if options.ranks == "both" else (int(options.ranks),):
            print(f"{derive(config, ranks).batch_equation}; {_conditions(config, ranks)}\n")
            measured = measure(chosen, options.recipe, overrides, ranks, options.rounds, options.steps)
            print(f"{table(config, ranks, *measured)}\n", flush=True)
    except GroundworkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _conditions(config: RunConfig, ranks: int) -> str:
    parameters = derive(config, ranks).parameters.total
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "deepspeed"))
    return f"{parameters:,} parameters, {_threads(ranks)} thread(s) a rank, {versions}"


def _threads(ranks: int) -> int:
    return max(len(os.sched_getaffinity(0)) // ranks, 1)


def _missing(peer: Peer) -> list[str]:
    return [package for package in peer.needs if not find_spec(package)]


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {**os.environ, "OMP_NUM_THREADS": str(_threads(ranks)), "DS_ACCELERATOR": "cpu"}
    return environment | {name: str(value) for name, value in place.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
