"""What one device does in a second: matrix products by their shape, attention, and everything bound by memory.

A product of an M x K and a K x N matrix takes 2MNK FLOPs at the rate that large products reach, and the time in which its
three matrices cross the memory bus: a kernel that computes 128 x 128 tiles only partly hides the one behind the other. Both
terms together give what is measured of small and narrow products: a roofline with a round shoulder (Williams et al. 2009,
doi.org/10.1145/1498765.1498785). Every kernel adds a fixed time, in which the device fills up and drains.
"""

from dataclasses import dataclass

from config.hardware import Accelerator

SUSTAINED = 0.88
"""Share of the rate of the best shapes that products of all shapes keep up over whole steps, at the clock that power allows."""
BANDWIDTH_EFFICIENCY = 0.88
"""Share of the data sheet's memory bandwidth that a copy reaches: 4.3 of 4.8 TB/s measured on an H200."""
KERNEL_SECONDS = {"gpu": 2e-6, "cpu": 8e-6}
"""Fixed time of a kernel."""
FULL_HEAD, HALF_ROW = 128, {"gpu": 300, "cpu": 580}
"""Head size from which attention is as fast as it gets, and keys at which it is half as fast as over long rows."""


@dataclass(frozen=True)
class Device:
    """Rates of one accelerator in one precision, in FLOPs and bytes per second."""

    matmul: float
    """Of large matrix products."""
    attention: float
    """Of attention over long rows with heads of 128."""
    bandwidth: float
    """Of its memory, as a copy reaches it."""
    kernel: float
    """Seconds that each kernel takes at least."""
    half_row: float
    """Keys at which attention is half as fast."""

    def matmul_seconds(self, m: float, n: float, k: float, size: int) -> float:
        """Of one product [m, k] x [k, n] of numbers of `size` bytes."""
        return 2 * m * n * k / self.matmul + size * (m * n + m * k + n * k) / self.bandwidth + self.kernel

    def linear_seconds(self, tokens: float, inputs: int, outputs: int, size: int) -> tuple[float, float]:
        """Of a linear layer: its forward pass, and both products of its backward pass."""
        forward = self.matmul_seconds(tokens, outputs, inputs, size)
        backward = self.matmul_seconds(tokens, inputs, outputs, size) + self.matmul_seconds(
            inputs, outputs, tokens, size
        )
        return forward, backward

    def attention_seconds(self, forward_flops: float, head_size: int, keys: float) -> tuple[float, float]:
        """Forward, and backward with 2.5 times the FLOPs, as it computes the scores once more (Dao, arXiv:2307.08691).

        `keys` are those of an average query. Heads below 128 leave a part of the matrix units idle, short rows most of a
        tile's fixed cost unpaid."""
        rate = self.attention * (0.5 + 0.5 * min(head_size / FULL_HEAD, 1)) * keys / (keys + self.half_row)
        return forward_flops / rate, 2.5 * forward_flops / rate

    def memory_seconds(self, size: float, kernels: float = 0) -> float:
        """Of reading and writing `size` bytes in so many kernels."""
        return size / self.bandwidth + kernels * self.kernel


def make_device(accelerator: Accelerator, precision: str, kernel: str, biased: bool) -> Device:
    """`kernel` as `engine.kernel`; `biased`: attention adds a bias to its scores, for which there is no fast kernel."""
    peak = 1e12 * (accelerator.fp32_tflops if precision == "fp32" else accelerator.bf16_tflops)
    share = accelerator.attention_efficiency
    if kernel == "flash":
        share = accelerator.flash_efficiency or share
    return Device(
        matmul=SUSTAINED * peak * (1 if precision == "fp32" else accelerator.matmul_efficiency),
        attention=peak * share * (0.5 if biased else 1),
        bandwidth=1e9 * accelerator.memory_bandwidth_gb * BANDWIDTH_EFFICIENCY,
        kernel=KERNEL_SECONDS[accelerator.kind],
        half_row=HALF_ROW[accelerator.kind],
    )
