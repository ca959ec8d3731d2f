"""What a run shows and keeps: a live line, metrics.jsonl, TensorBoard and Weights & Biases."""

import json
import math
import os
import sys
import time
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any, TextIO

from config import RunConfig, dump_recipe
from engine.build import Setup
from engine.device import memory_gb
from engine.dist import World, together
from engine.engine import StepReport, Validation
from engine.scores import LANGUAGE
from engine.writers import TensorBoardWriter, WandbWriter

METRICS = "metrics.jsonl"
PLAIN_LINE_SECONDS = 5.0
RECENT_STEPS = 50


class Monitor:
    """Reports of the main rank. Other ranks' calls do nothing."""

    def __init__(
        self, folder: Path, config: RunConfig, setup: Setup, world: World, first_step: int, target_bytes: float
    ):
        """`target_bytes` is of `engine.scores.bytes_per_target`; where it is 0, no bits per byte are shown."""
        self.settings, self.steps, self.world = config.monitor, config.schedule.steps, world
        self.flops_per_token = setup.derived.flops_per_token
        self.peak_flops = setup.peak.value * 1e12 * world.size
        self._first_step, self._target_bytes = first_step, target_bytes
        self._writers: list[Any] = []
        self._line = ProgressLine(sys.stdout)
        # Without the first step, which compiles; a median, because some steps wait for the disk.
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        together(lambda: self._open(folder, config, first_step) if world.is_main else None, world)

    def _open(self, folder: Path, config: RunConfig, first_step: int) -> None:
        forget_after(folder / METRICS, first_step)
        self._metrics = (folder / METRICS).open("a")
        if config.monitor.tensorboard:
            self._writers.append(TensorBoardWriter(folder / "tensorboard", dump_recipe(config), first_step))
        if config.monitor.wandb:
            self._writers.append(WandbWriter(folder, config))

    def say(self, text: str) -> None:
        """A line that stays on the screen."""
        if self.world.is_main:
            self._line.keep(text)

    def step(self, report: StepReport, tokens_done: int, tokens: int, seconds: float) -> None:
        """Record a step of so many tokens that took `seconds`, data included."""
        if not self.world.is_main:
            return
        if report.step > self._first_step:
            self._recent.append(seconds)
        done = report.step + 1
        if done % self.settings.log_every_steps and done != self.steps:
            return
        rate = tokens / seconds
        values = {
            "loss": report.loss,
            **_by_part("loss", report.parts),
            "lr": report.lr,
            **({"skipped": True} if report.skipped else {"grad_norm": report.grad_norm}),
            "tokens_per_second": rate,
            "mfu": rate * self.flops_per_token / self.peak_flops,
            "memory_gb": memory_gb(self.world.device),
            "seconds": seconds,
        }
        self._record(done, {"tokens": tokens_done, **values})
        self._line.live(self._status(done, values), last=done == self.steps)

    def validation(self, step: int, found: Validation) -> None:
        """Record the held-out loss and scores after `step` steps."""
        if not self.world.is_main:
            return
        parts = found.parts
        values = {"validation_loss": sum(parts.values()), **_by_part("validation_loss", parts)}
        for nats in (parts[part] for part in LANGUAGE if part in parts):
            values["validation_perplexity"] = math.exp(min(nats, 700.0))
            if self._target_bytes:
                values["validation_bits_per_byte"] = nats / math.log(2) / self._target_bytes
        values |= {f"validation_{name}": score for name, score in found.scores.items()}
        self._record(step, values)
        words = [f"{name.replace('_', ' ').removeprefix('validation ')} {value:,.4f}" for name, value in values.items()]
        self._line.keep(f"step {step:,}: validation {', '.join(words)}")

    def sample(self, step: int, text: str) -> None:
        """Record a generated text."""
        if not self.world.is_main:
            return
        self._write(step, {"sample": text})
        for writer in self._writers:
            writer.text(step, text)

    def close(self) -> None:
        if self.world.is_main:
            self._line.end()
            self._metrics.close()
            for writer in self._writers:
                writer.close()

    def _record(self, step: int, values: dict[str, Any]) -> None:
        self._write(step, values)
        for writer in self._writers:
            writer.scalars(step, values)

    def _write(self, step: int, values: dict[str, Any]) -> None:
        self._metrics.write(json.dumps({"step": step, **values}) + "\n")
        self._metrics.flush()

    def _status(self, done: int, values: dict[str, float]) -> str:
        left = _duration((self.steps - done) * median(self._recent)) if self._recent else "unknown"
        gradient = f"{values['grad_norm']:.2f}" if "grad_norm" in values else "overflow"
        return (
            f"step {done:,}/{self.steps:,}  loss {values['loss']:.4f}  lr {values['lr']:.2e}  "
            f"grad {gradient}  {values['tokens_per_second']:,.0f} tokens/s  MFU {values['mfu']:.1%}  "
            f"{values['memory_gb']:.1f} GB  ETA {left}"
        )


class ProgressLine:
    """One line that rewrites itself on a terminal; plain lines, not too many, when piped."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.terminal = stream.isatty()
        self._open = False
        self._last = -math.inf

    def live(self, text: str, last: bool = False) -> None:
        if self.terminal:
            self._write(f"\r\x1b[K{text}")
            self._open = True
        elif last or time.monotonic() - self._last >= PLAIN_LINE_SECONDS:
            self._write(text + "\n")
            self._last = time.monotonic()

    def keep(self, text: str) -> None:
        self.end()
        self._write(text + "\n")

    def end(self) -> None:
        if self._open:
            self._write("\n")
            self._open = False

    def _write(self, text: str) -> None:
        """A screen that is gone, because its ssh has ended, must not end the run before it has saved."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def forget_after(path: Path, step: int) -> None:
    """Drop lines of steps after `step`, which a resumed run does again, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def _by_part(name: str, parts: dict[str, float]) -> dict[str, float]:
    """Each part of a loss that has several."""
    return {f"{name}_{part}": value for part, value in parts.items()} if len(parts) > 1 else {}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
