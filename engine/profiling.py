"""Traces of single steps for Perfetto (ui.perfetto.dev) and TensorBoard's profiler plugin."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile

from engine.runs import Say

SPANS = ("data", "first pass", "forward", "backward", "optimizer", "validation", "sample", "checkpoint")
"""Names under which the parts of a step are recorded, in its order."""
OPERATORS_SHOWN = 8


class Tracer:
    """One trace for each run of neighbouring steps; the step before it warms the profiler up."""

    def __init__(self, wanted: frozenset[int]):
        self.wanted = wanted
        self.steps = wanted | {step - 1 for step in wanted if step > 1}
        """Those at which the profiler is on."""
        self._profile: Any = None

    @contextmanager
    def step(self, number: int, folder: Path, rank: int, say: Say) -> Iterator[None]:
        if self._profile is None:
            self._profile = self._start(number, folder, rank, say)
        try:
            yield
        except BaseException:
            self._profile.on_trace_ready = None
            self._profile.stop()
            raise
        self._profile.step()
        if number + 1 not in self.steps:
            self._profile.stop()
            self._profile = None

    def _start(self, number: int, folder: Path, rank: int, say: Say) -> Any:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it announces each start on stderr
        warnings.filterwarnings("ignore", message=".*Profiler clears events")  # each trace is written as it ends
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()

        def write(profiler: Any) -> None:
            # TensorBoard's plugin looks for this ending.
            last = profiler.step_num - 1
            path = folder / f"trace_step_{last:08d}.rank_{rank}.pt.trace.json.gz"
            profiler.export_chrome_trace(str(path))
            say(f"trace up to step {last:,}: {path}\n{_summary(profiler.key_averages())}")

        profiler = profile(activities=activities, schedule=self._action, on_trace_ready=write, record_shapes=True)
        # It counts from 0; the trace shall have the run's numbers.
        profiler.step_num = number
        profiler.current_action = self._action(number)  # type: ignore[assignment]  # torch types it by its first value
        profiler.start()
        return profiler

    def _action(self, number: int) -> ProfilerAction:
        if number in self.wanted:
            return ProfilerAction.RECORD if number + 1 in self.wanted else ProfilerAction.RECORD_AND_SAVE
        return ProfilerAction.WARMUP if number + 1 in self.wanted else ProfilerAction.NONE


def _summary(events: Any) -> str:
    """Time in each part, and the operators that take most of it by themselves, on the device if there is one."""
    device = "device" if torch.cuda.is_available() else "cpu"
    spans = {event.key: event for event in events if event.key in SPANS}
    parts = ", ".join(f"{name} {spans[name].cpu_time_total / 1e3:.1f} ms" for name in SPANS if name in spans)
    operators = [e for e in events if e.key not in SPANS and not e.key.startswith("ProfilerStep")]
    operators.sort(key=lambda event: -getattr(event, f"self_{device}_time_total"))
    total = sum(getattr(event, f"self_{device}_time_total") for event in operators) or 1
    lines = [f"  {parts} (host time)", f"  {'operator':<44} {'calls':>6} {'ms':>9} {'share':>6}"]
    for event in operators[:OPERATORS_SHOWN]:
        own = getattr(event, f"self_{device}_time_total")
        lines.append(f"  {event.key[:44]:<44} {event.count:>6} {own / 1e3:>9.2f} {own / total:>6.1%}")
    return "\n".join(lines)
