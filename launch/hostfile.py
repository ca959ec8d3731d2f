"""check a DeepSpeed hostfile and its hosts, and print the commands that start a run on them"""

import argparse
import re
import shlex
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path

from config import ConfigError, derive, load_recipe

ROOT = Path(__file__).parents[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hostfile", type=Path, help="lines of `NAME slots=RANKS`")
    parser.add_argument("recipe", nargs="?", help="recipe whose batch these ranks are to divide")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds until a host counts as unreachable (5)")
    parser.add_argument("--no-ssh", action="store_true", help="for hosts where ssh is not allowed: resolve names only")


def run(options: argparse.Namespace) -> int:
    """Returns 0 if every host can take part, else 1."""
    if not options.timeout > 0:
        raise ConfigError(f"--timeout {options.timeout:g}: give a number of seconds above zero")
    slots = read_hostfile(options.hostfile)
    ranks = sum(slots.values())
    print(f"{options.hostfile}: {len(slots)} host(s), {ranks} ranks")
    if options.recipe:
        print(f"{options.recipe}: {derive(load_recipe(options.recipe, options.overrides), ranks).batch_equation}")
    with ThreadPoolExecutor(max_workers=64) as pool:
        found = pool.map(lambda host: problem_of(host, options.timeout, options.no_ssh), slots)
        problems = dict(zip(slots, found, strict=True))
    for host, problem in problems.items():
        print(f"{'fail' if problem else 'ok':>4}  {host} slots={slots[host]}{f': {problem}' if problem else ''}")
    failed = any(problems.values())
    if not options.no_ssh and not shutil.which("pdsh"):
        print("fail  pdsh is not installed here: install it (apt-get install pdsh), or use the command without ssh")
        failed = True
    print(commands(options.hostfile, slots, [options.recipe or "RECIPE", *options.overrides]))
    return int(failed)


def read_hostfile(path: Path) -> dict[str, int]:
    """Ranks by host, in the order of the file. Raises ConfigError with every wrong line."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: write one line `NAME slots=RANKS` for each host") from None
    slots: dict[str, int] = {}
    first: dict[str, int] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split(maxsplit=1)
        if not words:
            continue
        host, rest = words[0], "".join(words[1:]).strip()
        count = re.fullmatch(r"slots=(\d+)", rest)
        if not count or not int(count[1]):
            problems.append(f"{path}:{number}: {line.strip()}: {_wrong_line(host, rest)}")
        elif host in slots:
            problems.append(f"{path}:{number}: {host} stands in line {first[host]} already: leave one of them out")
        else:
            slots[host], first[host] = int(count[1]), number
    if problems or not slots:
        raise ConfigError("\n".join(problems) or f"{path}: no hosts in it; write one line `NAME slots=RANKS` for each")
    return slots


def _wrong_line(host: str, rest: str) -> str:
    number = re.search(r"\d+", rest)
    key = re.split(r"[=:\s\d]", rest, maxsplit=1)[0]
    if number and int(number[0]) and (not key or get_close_matches(key, ["slots"], 1, 0.5)):
        return f"did you mean `{host} slots={number[0]}`?"
    return "expected `NAME slots=RANKS`, with at least one rank, and nothing after it"


def problem_of(host: str, timeout: float, no_ssh: bool) -> str:
    """Why a host cannot take part in a run of this checkout, and what to do; empty if nothing is wrong."""
    name = host.rpartition("@")[2]
    try:
        socket.getaddrinfo(name, None)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name at all, as `worker..1`
        return f"the name does not resolve ({getattr(error, 'strerror', None) or error}): correct it, or add it to DNS or /etc/hosts"
    if no_ssh:
        return ""
    python, train = shlex.quote(sys.executable), shlex.quote(str(ROOT / "train.py"))
    script = f"test -f {train} || exit 91; test -x {python} || exit 92"
    command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(round(timeout), 1)}", host, script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * timeout, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return "ssh is not installed here: install it (apt-get install openssh-client), or pass --no-ssh"
    except subprocess.TimeoutExpired:
        return f"ssh gave no answer in {2 * timeout:g} s: see whether the host hangs, or leave it out"
    if done.returncode == 0:
        return ""
    same = "pdsh starts the same path on every host, so share the folder or copy it there"
    why = {91: f"no {train} there: {same}", 92: f"no {python} there: {same}"}
    said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    fix = "start the host, put your key into its authorized_keys, or leave it out"
    return why.get(done.returncode, f"{said[0].strip()}: {fix}")


def commands(hostfile: Path, slots: dict[str, int], arguments: list[str]) -> str:
    """How to start a run on these hosts."""
    first, run_it = next(iter(slots)).rpartition("@")[2], f"train.py {shlex.join(arguments)}"
    start = f"deepspeed --hostfile {shlex.quote(str(hostfile))}"
    numbers = ", ".join(f"{i} on {host}" for i, host in enumerate(list(slots)[:3])) + (", …" if len(slots) > 3 else "")
    choices = {
        "from one host, over ssh": f"{start} {run_it}",
        f"on every host, without ssh (I is {numbers})": f"{start} --no_ssh --node_rank I --master_addr {first} {run_it}",
    }
    if len(set(slots.values())) == 1:
        inside = "inside a SLURM allocation of these hosts"
        choices[inside] = f"{start} --launcher slurm --no_ssh_check --master_addr {first} {run_it}"
    return "\n".join(f"{what}:\n    {command}" for what, command in choices.items())
