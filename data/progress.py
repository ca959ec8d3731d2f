"""How far a long job is: a bar on a terminal, a plain line every few seconds elsewhere."""

import shutil
import sys
import time
from types import TracebackType

from tqdm import tqdm

LINE_SECONDS = 10.0


def in_bytes(count: float) -> str:
    """A number of bytes with a decimal unit: 79 B, 12.3 kB, 31.7 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


class Progress:
    """Shows bytes done, MB/s and the time left on stderr. `total` 0 means unknown."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._start, self._start_done = time.monotonic(), done
        self._next_line = self._start + LINE_SECONDS
        self._bar = _bar(label, total, done) if sys.stderr.isatty() else None

    def show(self, done: int) -> None:
        """Say that `done` bytes are done in all."""
        step, self.done = done - self.done, done
        if self._bar is not None:
            self._bar.update(step)
        elif time.monotonic() >= self._next_line:
            self._next_line += LINE_SECONDS
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        speed = (self.done - self._start_done) / (time.monotonic() - self._start)
        if not self.total:
            return f"{self.label}: {in_bytes(self.done)}, {in_bytes(speed)}/s"
        left = tqdm.format_interval((self.total - self.done) / speed) if speed else "?"
        return f"{self.label}: {self.done / self.total:.0%} of {in_bytes(self.total)}, {in_bytes(speed)}/s, {left} left"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _bar(label: str, total: int, done: int) -> tqdm:
    columns, rows = shutil.get_terminal_size()  # 80 x 24 where the terminal says 0 x 0, at which tqdm shows nothing
    return tqdm(
        total=total or None,
        initial=done,
        desc=label,
        unit="B",
        unit_scale=True,
        leave=False,
        smoothing=0.05,
        ncols=columns,
        nrows=rows,
    )
