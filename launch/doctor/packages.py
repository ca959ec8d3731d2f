"""Python, installed packages, the checkout itself and compilers; torch is looked at without importing it."""

import hashlib
import importlib.metadata
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from launch.doctor.check import Check, fail, ok, skip, warn

ROOT = Path(__file__).parents[2]
CODE = ("train.py", "config/**/*.py", "data/**/*.py", "model/**/*.py", "engine/**/*.py", "ds_configs/*.json")
INSTALL = "pip install -c constraints.txt -e . in the environment that the job activates, on every node"


def requirements(pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """The project's own requirements, e.g. `torch>=2.11`."""
    block = re.search(r"^dependencies = \[(.*?)^\]", pyproject.read_text(), re.MULTILINE | re.DOTALL)
    return re.findall(r'"(.+?)"', block.group(1)) if block else []


def versions() -> dict[str, str]:
    """Version of Python, of every required package ("missing" if it is), and a fingerprint of this checkout's code."""
    found = {"python": platform.python_version()}
    for requirement in requirements():
        name = re.split(r"[<>=!~\[; ]", requirement)[0]
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return {**found, "code": fingerprint(ROOT)}


def fingerprint(root: Path) -> str:
    """Eight hex digits over the files that train; hosts with another number have another checkout."""
    total = hashlib.sha256()
    for path in sorted(path for pattern in CODE for path in root.glob(pattern)):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:8]


def packages(found: dict[str, str], wanted: list[str]) -> list[Check]:
    """Versions against the ranges of pyproject.toml."""
    from packaging.requirements import Requirement

    python = f"{found['python']} at {sys.executable}"
    checks = [ok("python", python)]
    if tuple(map(int, found["python"].split(".")[:2])) < (3, 10):
        checks = [
            fail("python", python, "Python 3.10 or later; module load or activate the environment in the job script")
        ]
    parsed = [Requirement(line) for line in wanted]
    wrong = [
        f"{one.name} {found[one.name]} (needs {one.specifier})"
        for one in parsed
        if found[one.name] == "missing" or not one.specifier.contains(found[one.name], prereleases=True)
    ]
    if wrong:
        return [*checks, fail("packages", ", ".join(wrong), INSTALL)]
    shown = ", ".join(f"{name} {found[name]}" for name in ("torch", "deepspeed", "accelerate"))
    return [*checks, ok("packages", f"all {len(parsed)} within their ranges: {shown}")]


def torch_cuda() -> str | None:
    """The CUDA version torch was built with, read from its version.py; None for a CPU or ROCm build or without torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    found = re.search(r"^cuda.*= '([\d.]+)'", (Path(spec.origin).parent / "version.py").read_text(), re.MULTILINE)
    return found.group(1) if found else None


def compilers(cuda: str | None) -> list[Check]:
    """What torch.compile and DeepSpeed's ops need to build; `cuda` is torch's."""
    checks = []
    gcc = _version(["g++", "-dumpfullversion"], r"([\d.]+)")
    if gcc is None:
        found = "none: torch.compile on a CPU and DeepSpeed's ops cannot be built"
        checks.append(warn("g++", found, "apt-get install g++, or module load gcc; engine.compile=off does without"))
    elif int(gcc.split(".")[0]) < 9:
        checks.append(warn("g++", f"{gcc}: torch's headers need 9 or later (C++17)", "module load a newer gcc"))
    else:
        checks.append(ok("g++", gcc))
    ninja = _version(["ninja", "--version"], r"(\d+(?:\.\d+)*)")
    missing = warn("ninja", "none: DeepSpeed's ops cannot be built", "pip install ninja")
    checks.append(ok("ninja", ninja) if ninja else missing)
    return [*checks, _nvcc(_version(["nvcc", "--version"], r"release ([\d.]+)"), cuda)]


def _nvcc(nvcc: str | None, cuda: str | None) -> Check:
    if cuda is None:
        return skip("nvcc", "torch is built without CUDA, so no CUDA op will be")
    if nvcc is None:
        return skip("nvcc", f"none, and training needs none; only building CUDA ops or flash-attn would (CUDA {cuda})")
    if nvcc.split(".")[0] != cuda.split(".")[0]:
        fix = f"module load cuda/{cuda} and set CUDA_HOME; DeepSpeed refuses to build ops across major versions"
        return warn("nvcc", f"{nvcc}, but torch was built with CUDA {cuda}", fix)
    return ok("nvcc", f"{nvcc}, torch was built with CUDA {cuda}")


def _version(command: list[str], pattern: str) -> str | None:
    if not shutil.which(command[0]):
        return None
    found = re.search(pattern, subprocess.run(command, capture_output=True, text=True).stdout)
    return found.group(1) if found else None
