"""A training step beside its peers, at equal model, batch and optimiser: `python -m benchmarks.cpu_peers`.

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

RECIPE = "gpt_quickstart"
SETTINGS = (
    "model.preset=gpt2", "model.num_heads=4", "model.num_kv_heads=4", "engine.precision=bf16_autocast",
    "engine.compile=on", "schedule.steps=10000", "monitor.peak_tflops=1",
)  # fmt: skip
"""Laid over the recipe: GPT-2's architecture, which all peers have."""
SHAPES = {
    "6x256": ("model.hidden_size=256", "model.head_size=64", "batch.global_batch_size=32"),
    "4x128": (
        "model.num_layers=4", "model.hidden_size=128", "model.head_size=32", "model.vocab_size=65",
        "model.max_positions=64", "data.row_length=64", "batch.global_batch_size=12",
    ),
}  # fmt: skip
"""Layers x width. 6x256: 256 tokens a row, 8,192 a step. 4x128: nanoGPT's own for CPUs, 64 a row, 768 a step."""
MICRO_BATCH_TOKENS = 2048
"""For every peer but nanoGPT in fp32, which takes the step whole; other sizes were not tried for each peer."""
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Peer:
    """One row of the table."""

    label: str
    function: str
    """Name in step_peers.PEERS."""
    overrides: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("torch",)
    """Packages it cannot run without."""
    checkout: str = ""
    """The option with the path of its source."""


PEERS = (
    Peer("nanoGPT as it ships: fp32", "nanogpt", ("engine.precision=fp32", "engine.compile=off"), checkout="nanogpt"),
    Peer("nanoGPT, bf16, compiled, fused AdamW", "nanogpt", checkout="nanogpt"),
    Peer("litgpt, bf16, compiled, fused AdamW", "litgpt", needs=("torch", "lightning"), checkout="litgpt"),
    Peer("Hugging Face Trainer, bf16, compiled", "hugging_face", needs=("transformers", "accelerate")),
    Peer("our model in plain torch, bf16, compiled", "plain_torch"),
    *(
        Peer(f"Groundwork, ZeRO {stage}, bf16, compiled", "groundwork", (f"engine.ds_config=zero{stage}",))
        for stage in range(3)
    ),
    Peer("Groundwork, ZeRO 3, bf16", "groundwork", ("engine.ds_config=zero3", "engine.compile=off")),
)
REFERENCE = "Groundwork, ZeRO 0"


class PeerFailure(Exception):
    """A peer's process ended; the text is the last line it wrote."""


class Group:
    """The running processes of one peer, one for each rank."""

    def __init__(self, peer: Peer, checkout: str, overrides: list[str], ranks: int):
        self.errors: IO[str] = TemporaryFile("w+")  # noqa: SIM115 (closed with the group)
        command = [sys.executable, "-m", "benchmarks.step_peers", peer.function, checkout, RECIPE, *overrides]
        port = _free_port()
        self.processes = [
            subprocess.Popen(
                [*command, *peer.overrides], env=_environment(rank, ranks, port), text=True,
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
    peers: dict[Peer, str], overrides: list[str], ranks: int, rounds: int, steps: int
) -> tuple[dict[Peer, list[float]], dict[Peer, str]]:
    """Seconds of every step of each peer, and why a peer has none. The first turn of each, its warm-up, does not count.

    `peers`: with the paths of their checkouts.
    """
    seconds: dict[Peer, list[float]] = {peer: [] for peer in peers}
    problems = {peer: f"needs {', '.join(missing)}" for peer in peers if (missing := _missing(peer, peers[peer]))}
    groups: dict[Peer, Group] = {}
    with ExitStack() as stack:
        for turn in range(1 + rounds):
            for peer in [peer for peer in peers if peer not in problems]:
                if turn == 0:
                    groups[peer] = stack.enter_context(closing(Group(peer, peers[peer], overrides, ranks)))
                try:
                    taken = groups[peer].take(steps if turn else WARM_UP_STEPS)
                except PeerFailure as failure:
                    problems[peer] = f"failed: {failure}"
                else:
                    seconds[peer] += taken if turn else []
    return seconds, problems


def table(config: RunConfig, ranks: int, seconds: dict[Peer, list[float]], problems: dict[Peer, str]) -> str:
    """Medians as a Markdown table."""
    tokens = derive(config, ranks).tokens_per_step
    medians = {peer: median(values) for peer, values in seconds.items() if values and peer not in problems}
    ours = next((middle for peer, middle in medians.items() if peer.label.startswith(REFERENCE)), None)
    lines = [
        f"| {ranks} rank{'s'[: ranks - 1]} | ms per step | tokens/s | {REFERENCE} is faster |",
        "| --- | --- | --- | --- |",
    ]
    for peer in seconds:
        if peer in problems:
            lines.append(f"| {peer.label} | {problems[peer]} | | |")
            continue
        ratio = f"{medians[peer] / ours:.2f} ×" if ours else ""
        lines.append(f"| {peer.label} | {1e3 * medians[peer]:,.0f} | {tokens / medians[peer]:,.0f} | {ratio} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_peers", description=__doc__)
    parser.add_argument("--nanogpt", default="", metavar="PATH", help="a checkout of karpathy/nanoGPT")
    parser.add_argument(
        "--litgpt", default="", metavar="PATH", help="a checkout of Lightning-AI/litgpt; needs lightning"
    )
    parser.add_argument("--shape", choices=[*SHAPES], default="6x256", help="layers x width")
    parser.add_argument("--ranks", choices=["1", "2", "both"], default="both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of one turn")
    parser.add_argument("--only", nargs="+", default=[], help="peers whose label contains one of these words")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    shape = [*SETTINGS, *SHAPES[options.shape]]
    wanted = [peer for peer in PEERS if not options.only or any(word in peer.label for word in options.only)]
    peers = {peer: getattr(options, peer.checkout, "") for peer in wanted}
    try:
        for ranks in (1, 2) if options.ranks == "both" else (int(options.ranks),):
            overrides = [*shape, f"batch.micro_batch_size={micro_batch_size(shape, ranks)}", *options.overrides]
            config = load_recipe(RECIPE, overrides)
            print(f"{derive(config, ranks).batch_equation}; {_conditions(config, ranks)}\n", flush=True)
            measured = measure(peers, overrides, ranks, options.rounds, options.steps)
            print(f"{table(config, ranks, *measured)}\n", flush=True)
    except GroundworkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def micro_batch_size(shape: list[str], ranks: int) -> int:
    """Rows of a micro-batch: MICRO_BATCH_TOKENS, or all that a rank has."""
    config = load_recipe(RECIPE, shape)
    return min(MICRO_BATCH_TOKENS // config.data.row_length, config.batch.global_batch_size // ranks)


def _conditions(config: RunConfig, ranks: int) -> str:
    parameters = derive(config, ranks).parameters.total
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "deepspeed"))
    return f"{parameters:,} parameters, {_threads(ranks)} thread(s) a rank, {versions}"


def _threads(ranks: int) -> int:
    return max(len(os.sched_getaffinity(0)) // ranks, 1)


def _missing(peer: Peer, checkout: str) -> list[str]:
    missing = [package for package in peer.needs if not find_spec(package)]
    return missing if checkout or not peer.checkout else [*missing, f"--{peer.checkout} PATH"]


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
