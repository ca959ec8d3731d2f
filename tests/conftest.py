"""A small prepared corpus and a recipe for it, made once; and a way to run train.py as a user would."""

import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forked
from tests.ranks import free_port, rank_environ

ROOT = Path(__file__).parents[1]
# Background jobs are started with Ctrl-C ignored, and what tests start would ignore it, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Two tests run at a time, on as few as two cores; torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test is a rank of a job that the tests were started by.
LAUNCHERS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
for name in LAUNCHERS & os.environ.keys():
    del os.environ[name]
WORDS = "the model reads a row of tokens and predicts each next one from those before it while loss falls step by step"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests first: where one of them came last, a core would wait for it."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def no_rank() -> Iterator[None]:
    """Fails a test that leaves a launcher's variables in the environment: those after it would be ranks of its job."""
    yield
    left = {name: os.environ.pop(name) for name in LAUNCHERS & os.environ.keys()}
    assert not left


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """300 documents of simple English in a 512-token vocabulary, prepared by the command itself."""
    folder = tmp_path_factory.mktemp("corpus")
    draw, words = random.Random(0), WORDS.split()
    documents = [" ".join(draw.choices(words, k=draw.randint(40, 160))).capitalize() + "." for _ in range(300)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    command = [sys.executable, "-m", "data", "prepare", str(folder / "text.jsonl"), "--out", str(folder / "prepared")]
    command += ["--vocab-size", "512", "--split-valid", "0.1", "--workers", "1"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "prepared"


@pytest.fixture
def recipe(corpus, tmp_path) -> Path:
    """A 12-step recipe whose runs lie under the test's own folder."""
    return write_recipe(tmp_path, corpus)


def write_recipe(folder: Path, corpus: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(f"""# A tiny run.
run: {{folder: {folder}/runs}}
data: {{datasets: [{{path: {corpus}}}], row_length: 32}}
model:
  {{preset: qwen3, vocab_size: 512, num_layers: 2, hidden_size: 32, num_heads: 4, num_kv_heads: 2, max_positions: 64}}
batch: {{global_batch_size: 8, micro_batch_size: 2}}
optimizer: {{lr: 1e-2}}
schedule: {{steps: 12, warmup_steps: 2}}
engine: {{precision: fp32}}
checkpoint: {{every_steps: 4}}
validation: {{every_steps: 6, rows: 10}}
monitor: {{peak_tflops: 0.1, sample_tokens: 5, tensorboard: false}}
""")
    return path


MODEL = "vocab_size: 640, num_layers: 2, hidden_size: 32, num_heads: 4, max_positions: 64"
FAMILIES = {
    "gpt": "family: gpt",
    "bert": "family: bert, dropout: 0",
    "modernbert": "family: bert, preset: modernbert, local_window: 16, dropout: 0",
    "t5": "family: t5",
}


@pytest.fixture(scope="session")
def pretrained(corpus, tmp_path_factory) -> dict[str, Path]:
    """Runs of each family, 2 steps long."""
    folder = tmp_path_factory.mktemp("pretrained")
    recipe = write_recipe(folder, corpus)
    text = recipe.read_text()
    for name, settings in FAMILIES.items():
        recipe.write_text(re.sub(r"model:\n.*", f"model: {{{settings}, {MODEL}}}", text))
        made = train(recipe, "schedule.steps=2", f"run.name={name}", "validation.rows=2")
        assert made.returncode == 0, made.stderr
    return {name: folder / "runs" / name for name in FAMILIES}


def environment(**extra: str) -> dict[str, str]:
    """What a person's shell would have: no rendezvous variables, none of make's, CPU, one thread."""
    theirs = re.compile("MAKE.*|MFLAGS")
    clean = {name: value for name, value in os.environ.items() if not theirs.fullmatch(name)}
    return {**clean, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false", **extra}


def train(
    *arguments: str | Path, launcher: tuple[str, ...] = (), ranks: int = 1, **extra: str
) -> subprocess.CompletedProcess:
    """Run train.py to its end under a launcher; without one as ranks that are forked with its imports behind them."""
    command = [*launcher, "train.py", *map(str, arguments)]
    if launcher:
        return subprocess.run(command, cwd=ROOT, env=environment(**extra), capture_output=True, text=True, timeout=280)
    return run_forked(command, environment(**extra), ranks)


def task(*arguments: str | Path) -> subprocess.CompletedProcess:
    """Run `python -m tasks ...` to its end, likewise."""
    return run_forked(["tasks", *map(str, arguments)], environment())


def run_forked(command: list[str], environ: dict[str, str], ranks: int = 1) -> subprocess.CompletedProcess:
    """The output of all ranks, the first before the others, and an exit code that is 0 if all are."""
    port = str(free_port())
    places = [rank_environ(rank, ranks, port) if ranks > 1 else {} for rank in range(ranks)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"rank{rank}" for rank in range(ranks)]
        started = [
            forked.start(file, {**environ, **place}, run_command, command)
            for file, place in zip(files, places, strict=True)
        ]
        codes = [forked.finish(process, 280) for process in started]
        out, err = ("".join(Path(f"{file}.{stream}").read_text() for file in files) for stream in ("out", "err"))
    return subprocess.CompletedProcess(command, max(codes, key=abs), out, err)


def run_command(command: list[str]) -> None:
    """What `python FILE.py` or `python -m PACKAGE` does."""
    sys.argv = command
    if command[0].endswith(".py"):
        runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    """Training loss by step."""
    return {record["step"]: record["loss"] for record in metrics(run) if "loss" in record}
