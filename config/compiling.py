"""Whether to compile: decided without torch, so that a run can be planned for other devices than this machine's."""

import os
import shutil

from config.choice import Choice
from config.derive import Derived
from config.device import DeviceInfo
from config.schema import RunConfig

# Compiling takes a CPU about half a minute and saves a third of a step: 0.7 s in 1e12 FLOPs where it was measured.
FLOPS_THAT_REPAY_COMPILING = 5e13


def choose_compile(config: RunConfig, derived: Derived, precision: str, info: DeviceInfo, stage: int) -> Choice[bool]:
    """Whether to torch.compile the blocks, and why."""
    if config.engine.compile != "auto":
        return Choice(config.engine.compile == "on", "engine.compile")
    if config.engine.tensor_parallel > 1:
        return Choice(False, "tensor parallelism sums over ranks inside a block, which breaks its graph into pieces")
    if config.engine.activation_checkpointing == "selective":
        return Choice(False, "selective activation checkpointing cannot look into compiled blocks")
    if stage == 3:
        return Choice(False, "ZeRO 3 gathers weights inside a block, which breaks its graph into pieces")
    if info.kind == "gpu":
        return Choice(True, "fuses the element-wise work between matrix products")
    if not shutil.which(os.environ.get("CXX", "g++")):
        return Choice(False, "no C++ compiler was found")
    if precision == "fp32":
        return Choice(False, "in fp32 a CPU spends its time in matrix products")
    if derived.total_flops < FLOPS_THAT_REPAY_COMPILING:
        return Choice(False, "the run is too short to repay it")
    return Choice(True, "the run is long enough to repay it")
