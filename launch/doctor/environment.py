"""Environment variables that make a job slow, deaf or blind."""

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from launch.doctor.check import Check, fail, ok, warn

SLOW = {
    "NCCL_P2P_DISABLE": ("1", "GPUs of a host talk through host memory"),
    "NCCL_SHM_DISABLE": ("1", "ranks of a host talk through sockets"),
    "NCCL_IB_DISABLE": ("1", "InfiniBand stands idle, NCCL uses TCP"),
    "CUDA_LAUNCH_BLOCKING": ("1", "every kernel is waited for"),
    "TORCH_DISTRIBUTED_DEBUG": ("DETAIL", "every collective is checked by another one"),
    "TORCH_NCCL_BLOCKING_WAIT": ("1", "every collective is waited for"),
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": ("0", "a rank that died is waited for without end"),
    "NCCL_ASYNC_ERROR_HANDLING": ("0", "a rank that died is waited for without end"),
}
"""Variable → the value that hurts, and how."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
SHARED_BY_ALL = ("NCCL_", "GLOO_", "TORCH_", "UCX_", "FI_", "OMP_", "CUDA_LAUNCH")
PER_RANK = ("TORCHELASTIC_", "TORCH_NCCL_ASYNC_ERROR_HANDLING")
LIBRARIES = ("libcudart.so", "libnccl.so", "libcudnn.so", "libcublas.so", "libnvrtc.so")


def settings_of_all(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that have to be the same on every rank."""
    return {k: v for k, v in environ.items() if k.startswith(SHARED_BY_ALL) and not k.startswith(PER_RANK)}


def environment(environ: Mapping[str, str], gpus: int, hosts: int) -> list[Check]:
    problems = [*_visible(environ, gpus), *_slow(environ), *_interfaces(environ), *_proxies(environ)]
    problems += _libraries(environ.get("LD_LIBRARY_PATH", ""))
    if hosts > 1 and environ.get("MASTER_ADDR", "") in ("localhost", "127.0.0.1", "::1"):
        fix = "export MASTER_ADDR as the first node's name: $(scontrol show hostnames $SLURM_JOB_NODELIST | head -1)"
        problems.append(
            fail("MASTER_ADDR", f"{environ['MASTER_ADDR']} on {hosts} hosts: each would wait for itself", fix)
        )
    names = sorted(settings_of_all(environ))
    return problems or [ok("environment", f"set: {', '.join(names)}" if names else "nothing that changes NCCL or gloo")]


def _visible(environ: Mapping[str, str], gpus: int) -> list[Check]:
    setting, name = environ.get("CUDA_VISIBLE_DEVICES"), "CUDA_VISIBLE_DEVICES"
    if setting is None or not gpus:
        return []
    if setting.strip() in ("", "-1", "NoDevFiles"):
        found = f"{setting!r} hides all {gpus} GPUs of this host"
        return [fail(name, found, "unset it, or ask SLURM for GPUs (--gpus-per-node, --gres=gpu:N)")]
    numbers = [int(part) for part in setting.split(",") if part.strip().isdecimal()]
    missing = [number for number in numbers if number >= gpus]
    if missing or len(set(numbers)) < len(numbers):
        found = f"{setting}: " + (f"there is no GPU {missing[0]} among {gpus}" if missing else "a GPU is named twice")
        return [fail(name, f"{found}; CUDA hides all that follow", f"name GPUs from 0 to {gpus - 1}, each once")]
    return []


def _slow(environ: Mapping[str, str]) -> list[Check]:
    return [
        warn("environment", f"{name}={value}: {harm}", f"unset {name}; it is for debugging")
        for name, (value, harm) in SLOW.items()
        if environ.get(name, "").upper() == value
    ]


def _interfaces(environ: Mapping[str, str]) -> list[Check]:
    """NCCL takes prefixes, `=name` for exact names and `^` for all others; gloo takes exact names."""
    present, problems = [name for _, name in socket.if_nameindex()], []
    for variable in INTERFACES:
        setting = environ.get(variable, "")
        if not setting or setting.startswith("^"):
            continue
        exact = variable.startswith("GLOO") or setting.startswith("=")
        for wanted in setting.lstrip("=").split(","):
            if not any(name == wanted if exact else name.startswith(wanted) for name in present):
                found = f"{setting!r} names no interface of this host, which has {', '.join(present)}"
                fix = f"export {variable} as one of them, or unset it if the hosts' interfaces have different names"
                problems.append(fail(variable, found, fix))
    return problems


def _proxies(environ: Mapping[str, str]) -> list[Check]:
    lower = {name.lower(): value for name, value in environ.items()}
    proxy = next((name for name in ("http_proxy", "https_proxy", "all_proxy") if lower.get(name)), None)
    if proxy is None or re.search(r"localhost|127\.0\.0\.1|^\*$", lower.get("no_proxy", "")):
        return []
    found = f"{proxy} is set and no_proxy lacks localhost: what one process serves another is asked of the proxy"
    return [warn("proxy", found, "export no_proxy=localhost,127.0.0.1,.cluster (and the nodes' domain)")]


def _libraries(search_path: str) -> list[Check]:
    """CUDA libraries there are loaded in place of the ones that torch brings."""
    folders = [Path(part) for part in search_path.split(os.pathsep) if part]
    found = [
        file
        for folder in folders
        if folder.is_dir()
        for name in LIBRARIES
        for file in sorted(folder.glob(f"{name}.*"))[:1]
    ]
    if not found:
        return []
    fix = "unset LD_LIBRARY_PATH for training (torch's wheels bring their own), or make sure it is torch's version"
    names = ", ".join(file.name for file in found)
    return [warn("LD_LIBRARY_PATH", f"{found[0].parent} holds {names}, which torch may load instead of its own", fix)]
