"""What runs out of memory says so in one message."""

import pytest
import torch

from engine.memory_errors import is_out_of_memory, out_of_memory


def test_an_allocation_that_fails_is_recognised_and_its_size_named():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    message = str(out_of_memory(caught.value, 3, "node7"))
    assert "rank 3 on node7 is out of memory (it asked for 1152921504606846976 bytes more)" in message
    assert "python -m launch plan" in message


def test_of_a_gpu_and_of_python_too_but_nothing_else():
    gpu = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.1 GiB"
    )
    assert is_out_of_memory(gpu) and "asked for 2.50 GiB more" in str(out_of_memory(gpu, 0, "n"))
    assert is_out_of_memory(MemoryError()) and "asked" not in str(out_of_memory(MemoryError(), 0, "n"))
    with pytest.raises(RuntimeError) as other:
        torch.empty(2) @ torch.empty(3)
    assert not is_out_of_memory(other.value)
