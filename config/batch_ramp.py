"""The global batch over a run: a function of the stream's cursor, so that a resumed run goes on with the same steps."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config.schema import BatchSection


def batch_size_at(batch: "BatchSection", cursor: int, tokens_per_row: int) -> int:
    """Rows of the step that starts at global sample `cursor`."""
    for phase in batch.ramp:
        if cursor * tokens_per_row < phase.until_tokens:
            return phase.global_batch_size
    return batch.global_batch_size


def rows_after(batch: "BatchSection", steps: int, tokens_per_row: int) -> int:
    """Global samples of the first `steps` steps: the cursor after them."""
    cursor = 0
    for phase in batch.ramp:
        missing = -(-phase.until_tokens // tokens_per_row) - cursor
        taken = min(steps, max(0, -(-missing // phase.global_batch_size)))
        cursor, steps = cursor + taken * phase.global_batch_size, steps - taken
    return cursor + steps * batch.global_batch_size
