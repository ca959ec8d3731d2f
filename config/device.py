"""What has to be known of a device before torch is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
FAST_BF16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}
FP16_FLAGS = {"amx_fp16", "avx512_fp16"}


@dataclass(frozen=True)
class DeviceInfo:
    kind: Literal["cpu", "gpu"]
    name: str
    """As a person knows it: `H200`, `CPU with AMX`."""
    fast_bf16: bool
    """bf16 matrix products run faster than fp32 ones."""
    fp16: bool
    """DeepSpeed can train in fp16 on it."""


def cpu_info(cpuinfo: Path = Path("/proc/cpuinfo")) -> DeviceInfo:
    """The CPU of this machine, from the flags that Linux lists; elsewhere none are known."""
    flags: set[str] = set()
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        flags = {
            flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":")[1].split()
        }
    bf16 = [name for flag, name in FAST_BF16_FLAGS.items() if flag in flags]
    return DeviceInfo("cpu", f"CPU with {bf16[0]}" if bf16 else "CPU", bool(bf16), bool(FP16_FLAGS & flags))
