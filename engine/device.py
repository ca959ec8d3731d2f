"""What the device can do, and the choices that follow: threads, peak rate."""

import os
import socket
import time
from statistics import median

import torch

from config.choice import Choice
from config.device import NVIDIA_DRIVER, DeviceInfo, cpu_info
from config.errors import ConfigError
from config.hardware import by_device_name
from engine.dist import gather_objects

COMPUTE_DTYPE = {
    "fp32": torch.float32, "bf16_autocast": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip


def device_info(device: torch.device) -> DeviceInfo:
    if device.type == "cpu":
        return cpu_info()
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    built_for = [(int(arch[3:-1]), int(arch[-1])) for arch in torch.cuda.get_arch_list() if arch[3:].isdigit()]
    if built_for and capability < min(built_for):
        raise ConfigError(
            f"{name} has compute capability {_version(capability)}, but PyTorch {torch.__version__} was built for "
            f"{_version(min(built_for))} and newer: install a build for it, or train on the CPU with CUDA_VISIBLE_DEVICES="
        )
    return DeviceInfo("gpu", name, fast_bf16=capability >= (8, 0), fp16=True)


def hidden_gpu(info: DeviceInfo) -> str:
    """A word of warning where a CPU trains beside an NVIDIA driver."""
    if info.kind == "gpu" or not NVIDIA_DRIVER.exists():
        return ""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return " (the GPUs are hidden: CUDA_VISIBLE_DEVICES is empty)"
    return " (there is an NVIDIA driver, but PyTorch sees no GPU: `python -m launch doctor` says why)"


def _version(capability: tuple[int, ...]) -> str:
    return ".".join(map(str, capability))


def choose_threads() -> Choice[int]:
    """CPU threads of this rank, and why: ranks that may run on the same cores divide them. All ranks call it together.

    Launchers start every rank with as many threads as there are cores, and two such ranks get in each other's way.
    """
    threads, cores = torch.get_num_threads(), usable_cores()
    host = socket.gethostname()
    sharing = sum(other == host and not cores.isdisjoint(theirs) for other, theirs in gather_objects((host, cores)))
    if "OMP_NUM_THREADS" in os.environ:
        return Choice(threads, "OMP_NUM_THREADS")
    if sharing == 1:
        return Choice(threads, f"this rank has its {len(cores)} core(s) to itself")
    return Choice(max(threads // sharing, 1), f"{sharing} ranks share {len(cores)} cores")


def usable_cores() -> set[int]:
    """Numbers of the cores this process may run on; all of them where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def peak_tflops(device: torch.device, precision: str, configured: float | None) -> Choice[float]:
    """Peak rate of one device in TFLOP/s, the denominator of MFU: the recipe's, a data sheet's, or measured here."""
    if configured:
        return Choice(configured, "monitor.peak_tflops")
    if device.type != "cpu":
        known = by_device_name(torch.cuda.get_device_name(device))
        if known and precision != "fp32":
            return Choice(known.bf16_tflops, f"dense bf16 data-sheet peak of {known.name}")
    dtype = COMPUTE_DTYPE[precision]
    size = 1024 if device.type == "cpu" else 8192
    rate = measured_matmul_tflops(device, dtype, size)
    kind = str(dtype).removeprefix("torch.")
    return Choice(round(rate, 3), f"{size:,}-wide {kind} matrix product measured here")


def measured_matmul_tflops(device: torch.device, dtype: torch.dtype, size: int, repeats: int = 7) -> float:
    """Rate of a square matrix product in TFLOP/s, median of `repeats` after a warm-up."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        product = left @ right
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    del product
    return 2 * size**3 / median(seconds[2:]) / 1e12


def memory_gb(device: torch.device) -> float:
    """Peak device memory of this process on a GPU, resident memory on a CPU, in GB."""
    if device.type == "cpu":
        import psutil

        return psutil.Process().memory_info().rss / 1e9
    return torch.cuda.max_memory_allocated(device) / 1e9
