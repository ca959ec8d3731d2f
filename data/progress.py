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
    """Shows bytes or other units done, MB/s and the time left on stderr. `total` 0 means unknown."""

    def __init__(self, label: str, total: int, done: int = 0, unit: str = "B") -> None:
        self.label, self.total, self.done, self.unit = label, total, done, unit
        self._start, self._start_done = time.monotonic(), done
        self._next_line = self._start + LINE_SECONDS
        self._bar = _bar(label, total, done, unit) if sys.stderr.isatty() else None

    def show(self, done: int) -> None:
        """Say that `done` units are done in all."""
        step, self.done = done - self.done, done
        if self._bar is not None:
            self._bar.update(step)
        elif time.monotonic() >= self._next_line:
            self._next_line += LINE_SECONDS
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        speed = (self.done - self._start_done) / (time.monotonic() - self._start)
        if not self.total:
            return f"{self.label}: {self._amount(self.done)}, {self._amount(speed)}/s"
        left = tqdm.format_interval((self.total - self.done) / speed) if speed else "?"
        share = f"{self.done / self.total:.0%} of {self._amount(self.total)}"
        return f"{self.label}: {share}, {self._amount(speed)}/s, {left} left"

    def _amount(self, count: float) -> str:
        return in_bytes(count) if self.unit == "B" else f"{count:,.0f} {self.unit}"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _bar(label: str, total: int, done: int, unit: str) -> tqdm:
    columns, rows = shutil.get_terminal_size()  # 80 x 24 where the terminal says 0 x 0, at which tqdm shows nothing
    return tqdm(
        total=total or None,
        initial=done,
        desc=label,
        unit=unit if unit == "B" else f" {unit}",
        unit_scale=True,
        leave=False,
        smoothing=0.05,
        ncols=columns,
        nrows=rows,
    )
