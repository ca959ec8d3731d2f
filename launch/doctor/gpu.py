"""GPUs of one host: nvidia-smi's own report judged, AMD's listed."""

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from launch.doctor.check import Check, fail, ok, skip, warn

PCI = Path("/sys/bus/pci/devices")
VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD"}
COMPUTES = {"0x10de": ("0x0300", "0x0302"), "0x1002": ("0x0302", "0x0380", "0x1200")}
"""PCI classes by vendor: AMD's 0x0300 may be the graphics inside a processor."""
HARMLESS = ("gpu_idle", "applications_clocks_setting", "sw_power_cap", "sync_boost", "display_clocks_setting")
"""Reasons for lower clocks that are no fault: idle, as set, or at the power limit under load."""


class GPUs(NamedTuple):
    number: int
    driver_cuda: str
    """Newest CUDA that the NVIDIA driver runs, e.g. 12.4; empty without one."""
    checks: list[Check]


def find_gpus(pci: Path = PCI, devices: Path = Path("/dev")) -> GPUs:
    """The host's GPUs. Cards on the bus that no driver answers for are a fail, not a CPU host."""
    vendor, driven = vendor_on_the_bus(pci), (devices / "nvidia0").exists() or (devices / "kfd").exists()
    if shutil.which("nvidia-smi"):
        result = subprocess.run(["nvidia-smi", "-q", "-x"], capture_output=True, text=True)
        if result.returncode == 0:
            return judge_nvidia(result.stdout)
        if vendor or driven:
            problem = " ".join((result.stdout + result.stderr).split()) or f"ended with {result.returncode}"
            fix = "reload or reinstall the driver (`dmesg | grep -i nvrm` tells why); after an upgrade reboot the host"
            return GPUs(0, "", [fail("driver", f"nvidia-smi: {problem[:300]}", fix)])
    if shutil.which("rocm-smi"):
        return _amd()
    if driven:
        fix = "in a container NVIDIA_DRIVER_CAPABILITIES=compute,utility brings nvidia-smi; rocm-smi comes with ROCm"
        return GPUs(0, "", [warn("driver", "loaded, but nvidia-smi or rocm-smi is missing to ask it", fix)])
    if vendor:
        fix = "install or load its driver (modprobe nvidia, amdgpu); in a container pass the GPUs in (docker run --gpus all)"
        return GPUs(0, "", [fail("driver", f"a GPU of {vendor} is on the PCI bus and has no driver", fix)])
    return GPUs(0, "", [skip(name, "no GPU in this host") for name in ("driver", "GPUs")])


def visible_gpus(environ: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """NVIDIA GPUs that a program started here may use, without asking the driver, which may hang."""
    present = len(list(devices.glob("nvidia[0-9]*")))
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    return present if chosen is None else min(present, len([part for part in chosen.split(",") if part.strip()]))


def vendor_on_the_bus(pci: Path) -> str:
    """NVIDIA or AMD if a card of theirs that computes is plugged in, else an empty string."""
    for device in sorted(pci.glob("*")) if pci.is_dir() else []:
        kind, vendor = (
            file.read_text().strip() if file.exists() else "" for file in (device / "class", device / "vendor")
        )
        if kind.startswith(COMPUTES.get(vendor, ("none",))):
            return VENDORS[vendor]
    return ""


def judge_nvidia(xml: str) -> GPUs:
    """`nvidia-smi -q -x`."""
    log = ET.fromstring(xml)
    cards = log.findall("gpu")
    driver, cuda = _text(log, "driver_version"), _text(log, "cuda_version")
    if not cards:
        fix = "`lspci | grep -i nvidia`: a card that fell off the bus needs a power cycle; `dmesg | grep -i xid` tells which"
        return GPUs(0, cuda, [ok("driver", f"{driver}, CUDA up to {cuda}"), fail("GPUs", "nvidia-smi lists none", fix)])
    kinds = sorted({f"{_text(card, 'product_name')}, {_megabytes(card, 'total') / 1024:.0f} GiB" for card in cards})
    checks = [ok("driver", f"{driver}, CUDA up to {cuda}"), ok("GPUs", f"{len(cards)} × {' and '.join(kinds)}")]
    if len(kinds) > 1:
        fix = "the slowest and smallest sets the pace of all: leave it out with CUDA_VISIBLE_DEVICES"
        checks[1] = warn("GPUs", checks[1].found, fix)
    for number, card in enumerate(cards):
        checks += [problem._replace(found=f"GPU {number}: {problem.found}") for problem in _problems(card)]
    judged = {check.name for check in checks}
    fine = {
        "GPU memory": "all of it free", "GPU errors": "none counted", "GPU clocks": "not held down",
        "GPU settings": "no MIG, shared, persistent", "GPU link": "full width",
    }  # fmt: skip
    return GPUs(len(cards), cuda, checks + [ok(name, found) for name, found in fine.items() if name not in judged])


def _problems(card: ET.Element) -> list[Check]:
    problems = []
    used, total = _megabytes(card, "used"), _megabytes(card, "total")
    if used > 1024:
        holders = [f"{_text(p, 'pid')} ({_text(p, 'process_name')})" for p in card.iter("process_info")]
        who = f"by process {', '.join(holders)}" if holders else "by processes of another container or user"
        fix = "end what an earlier run left (`nvidia-smi` lists it), or ask for a whole, free node"
        problems.append(warn("GPU memory", f"{used / 1024:.1f} of {total / 1024:.0f} GiB in use {who}", fix))
    problems += [*_errors(card), *_settings(card)]
    reasons = [
        reason.tag.split("reason_")[1]
        for block in ("clocks_event_reasons", "clocks_throttle_reasons")
        for reason in card.findall(f"{block}/*")
        if reason.text == "Active" and "reason_" in reason.tag and not reason.tag.endswith(HARMLESS)
    ]
    if reasons:
        fix = "cooling or power of this host: every rank waits for its slowest GPU; drain the node"
        heat = _text(card, "temperature/gpu_temp")
        problems.append(warn("GPU clocks", f"held down by {', '.join(reasons)} at {heat}", fix))
    widths = [_text(card, f"pci/pci_gpu_link_info/link_widths/{which}_link_width") for which in ("current", "max")]
    if all(width.endswith("x") for width in widths) and int(widths[0][:-1]) < int(widths[1][:-1]):
        fix = "reseat the card or its riser; host transfers and NCCL across sockets run at that fraction"
        problems.append(warn("GPU link", f"PCIe {widths[0]} of {widths[1]}", fix))
    return problems


def _errors(card: ET.Element) -> list[Check]:
    name = "GPU errors"
    counted = sum(
        int(error.text or 0)
        for error in card.findall("ecc_errors/volatile/*")
        if "uncorrectable" in error.tag and (error.text or "").isdecimal()
    )
    fix = "drain the node and reset the GPU (nvidia-smi -r) or reboot; if it comes back, replace the card"
    if _text(card, "remapped_rows/remapped_row_failure") == "Yes":
        return [fail(name, "memory rows failed and no spare is left", "replace the card; drain the node")]
    if counted:
        return [fail(name, f"{counted:,} uncorrectable memory errors since the driver was loaded", fix)]
    if "Yes" in (_text(card, "remapped_rows/remapped_row_pending"), _text(card, "gpu_reset_status/reset_required")):
        return [warn(name, "a repair of its memory waits for a reset", fix)]
    return []


def _settings(card: ET.Element) -> list[Check]:
    name, problems = "GPU settings", []
    if _text(card, "mig_mode/current_mig") == "Enabled":
        fix = "a slice joins no NCCL group with another: ask for whole GPUs, or have MIG turned off (nvidia-smi -mig 0)"
        problems.append(warn(name, "MIG is on", fix))
    if _text(card, "compute_mode") == "Prohibited":
        problems.append(fail(name, "compute mode Prohibited: no program may use it", "nvidia-smi -c DEFAULT (root)"))
    if _text(card, "persistence_mode") == "Disabled":
        fix = "nvidia-smi -pm 1, or nvidia-persistenced: each start loads the driver anew"
        problems.append(warn(name, "persistence mode is off", fix))
    if _text(card, "fabric/state") not in ("N/A", "Completed", ""):
        found = f"NVLink fabric: {_text(card, 'fabric/state')}: CUDA cannot start (error 802)"
        problems.append(fail(name, found, "systemctl start nvidia-fabricmanager, in the driver's exact version"))
    return problems


def _amd() -> GPUs:
    command = ["rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        fix = "load amdgpu; the user must be in the groups render and video"
        return GPUs(0, "", [fail("driver", f"rocm-smi: {result.stderr.strip()}", fix)])
    cards = {name: card for name, card in json.loads(result.stdout).items() if name.startswith("card")}
    names = sorted({card.get("Card Series") or card.get("Card series") or "AMD GPU" for card in cards.values()})
    used = [int(card.get("VRAM Total Used Memory (B)", 0)) for card in cards.values()]
    checks = [ok("driver", "amdgpu"), ok("GPUs", f"{len(cards)} × {' and '.join(names)}")]
    if used and max(used) > 2**30:
        found, fix = (
            f"{max(used) / 2**30:.1f} GiB in use on one card",
            "end what an earlier run left (rocm-smi --showpids)",
        )
        checks.append(warn("GPU memory", found, fix))
    return GPUs(len(cards), "", checks)


def _text(element: ET.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _megabytes(card: ET.Element, which: str) -> int:
    number = _text(card, f"fb_memory_usage/{which}").split(" ")[0]
    return int(number) if number.isdecimal() else 0
