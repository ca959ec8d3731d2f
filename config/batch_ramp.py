"""The global batch over a run: a function of the stream's cursor, so that a resumed run goes on with the same steps."""

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config.schema import BatchSection


def batch_size_at(batch: "BatchSection", cursor: int, tokens_per_row: int) -> int:
    """Rows of the step that starts at global sample `cursor`."""
    phase = bisect_right(batch.ramp, cursor * tokens_per_row, key=lambda phase: phase.until_tokens)
    return batch.ramp[phase].global_batch_size if phase < len(batch.ramp) else batch.global_batch_size


def rows_after(batch: "BatchSection", steps: int, tokens_per_row: int) -> int:
    """Global samples of the first `steps` steps: the cursor after them."""
    cursor = 0
    for phase in batch.ramp:
        missing = -(-phase.until_tokens // tokens_per_row) - cursor
        taken = min(steps, max(0, -(-missing // phase.global_batch_size)))
        cursor, steps = cursor + taken * phase.global_batch_size, steps - taken
    return cursor + steps * batch.global_batch_size
