"""Starts the torch probe of this rank, listens to it, and judges what it says about torch, flash-attn and DeepSpeed."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.doctor.check import Check, fail, ok, skip, warn
from launch.doctor.collectives import BUSY

ROOT = Path(__file__).parents[2]
WHEELS = "https://pytorch.org/get-started/locally"


class Probe:
    """A process that has imported torch, and everything it has said so far."""

    def __init__(self, environ: Mapping[str, str]):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the probe)
        command = [sys.executable, "-m", "launch.doctor.torch_probe"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, cwd=ROOT, env=dict(environ), text=True, **pipes)  # type: ignore[call-overload]
        self.said: dict[str, Any] = {}
        self.heard = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            with self.heard:
                self.said.update(json.loads(line))
                self.heard.notify_all()
        with self.heard:
            self.said.setdefault("error", None)
            self.heard.notify_all()

    def wait_for(self, fact: str, seconds: float) -> dict[str, Any]:
        """All that was said once `fact` is among it, or the probe has ended, or time is up."""
        deadline = time.monotonic() + seconds
        with self.heard:
            while not {fact, "error"} & self.said.keys() and (left := deadline - time.monotonic()) > 0:
                self.heard.wait(left)
            said = dict(self.said)
        if fact not in said and not said.get("error"):
            said["error"] = self._last_words()
        return said

    def order(self, order: dict[str, Any] | None) -> None:
        """Send the probe to measure, or home."""
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except OSError:  # it has ended; wait_for tells why
            return

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()

    def _last_words(self) -> str:
        ended = self.process.poll()
        if ended is None:
            return BUSY
        self.errors.seek(0)
        lines = [line for line in self.errors.read().splitlines() if line.strip()]
        return f"ended with {ended}{': ' + lines[-1][:300] if lines else ''}"


def judge_software(said: Mapping[str, Any], gpus: int, driver_cuda: str) -> list[Check]:
    """What the first probe of a host found, against the host's GPUs and driver."""
    facts = said.get("software")
    if facts is None:
        fix = "python -c 'import torch' tells more; a slow import: put the environment on the nodes' disks or in a container"
        return [fail("torch", f"the torch probe: {said.get('error')} (at `{said.get('stage', 'start')}`)", fix)]
    return [_torch(facts, gpus, driver_cuda), _nccl(facts), *_flash(facts), _ops(facts.get("ops", {}))]


def _torch(facts: Mapping[str, Any], gpus: int, driver_cuda: str) -> Check:
    built = f"CUDA {facts['cuda']}" if facts["cuda"] else f"ROCm {facts['hip']}" if facts["hip"] else "for the CPU"
    found = f"{facts['torch']}, built {'with ' if 'CPU' not in built else ''}{built}"
    if gpus and not (facts["cuda"] or facts["hip"]):
        return fail(
            "torch", f"{found}, but the host has {gpus} GPUs", f"install torch's wheel for CUDA {driver_cuda}: {WHEELS}"
        )
    if facts["cuda"] and driver_cuda and _number(facts["cuda"])[0] > _number(driver_cuda)[0]:
        fix = f"update the driver, or install torch's wheel for CUDA {driver_cuda.split('.')[0]}: {WHEELS}"
        return fail("torch", f"{found}; the driver runs CUDA up to {driver_cuda}", fix)
    if gpus and not facts["gpus"]:
        fix = "error 802: nvidia-fabricmanager; 803 or 804: libcuda of another driver in LD_LIBRARY_PATH; else restart the host"
        return fail("torch", f"{found} sees no GPU: {facts.get('cuda_error', 'no reason given')}", fix)
    if facts["gpus"] and facts["cuda"] and not _has_kernels(facts["capability"], facts["archs"]):
        fix = f"install a torch wheel whose list has it: {WHEELS}"
        name = "sm_{}{}".format(*facts["capability"])
        return fail("torch", f"{found}; it has kernels for {', '.join(facts['archs'])}, not for this GPU's {name}", fix)
    if facts["import_seconds"] > 30:
        fix = "put the environment on the nodes' own disks or into a container image; each start waits for this"
        return warn("torch", f"{found}; importing it took {facts['import_seconds']:.0f} s", fix)
    return ok("torch", f"{found}, imported in {facts['import_seconds']:.1f} s")


def _has_kernels(capability: list[int], archs: list[str]) -> bool:
    """Binaries run on later minor versions of their major one; PTX (compute_) on everything later (CUDA C++ Programming
    Guide, application compatibility)."""
    for arch in archs:
        kind, _, digits = arch.partition("_")
        major, minor = int(digits.rstrip("af")[:-1]), int(digits.rstrip("af")[-1])
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
        if kind == "compute" and (major, minor) <= tuple(capability):
            return True
    return False


def _nccl(facts: Mapping[str, Any]) -> Check:
    if facts.get("nccl"):
        return ok("NCCL", facts["nccl"])
    if not facts["gloo"]:
        return fail("gloo", "torch was built without it: ranks on CPUs cannot reduce", f"install torch from {WHEELS}")
    return skip("NCCL", "no GPU: ranks reduce through gloo, which torch has")


def _flash(facts: Mapping[str, Any]) -> list[Check]:
    found: Mapping[str, str] = facts.get("flash", {})
    broken = {name: state for name, state in found.items() if state.startswith("broken")}
    good = [
        f"{name.split()[-1]} ({state})" for name, state in found.items() if state != "missing" and name not in broken
    ]
    if facts["gpus"] and broken:
        fix = "reinstall it for this torch: pip install --no-build-isolation --force-reinstall flash-attn; training goes on without"
        return [warn("flash-attn", f"{name} is {state}", fix) for name, state in broken.items()]
    if good:
        return [ok("flash-attn", f"{', '.join(good)}: computes what torch computes")]
    why = (
        "none installed: attention uses torch's own kernels"
        if facts["gpus"]
        else "no GPU: attention uses torch's own kernels"
    )
    return [skip("flash-attn", why)]


def _ops(ops: Mapping[str, str]) -> Check:
    if not ops:
        return skip("DeepSpeed ops", "not looked at")
    if "error" in ops:
        fix = "pip install 'deepspeed>=0.19.8,<0.20' after torch, with --no-build-isolation"
        return fail("DeepSpeed ops", f"deepspeed cannot be imported: {ops['error']}", fix)
    found = ", ".join(f"{name} {state}" for name, state in ops.items())
    return ok("DeepSpeed ops", f"{found}; training needs none of them, offload to the CPU included")


def _number(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:2]]
