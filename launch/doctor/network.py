"""Names, interfaces and TCP ports between hosts."""

import ipaddress
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from launch.doctor.check import Check, fail, ok, skip, warn
from launch.doctor.fold import counted, fold_names

ANSWER = b"groundwork"
FULL_MESH = 64
"""Up to this many hosts each calls every other; beyond, the next two."""
PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


class Endpoint(NamedTuple):
    """Where a host's doctor listens."""

    host: str
    address: str
    port: int


def hostname(name: str, hosts: int, gpus: int, environ: Mapping[str, str], resolve=socket.getaddrinfo) -> Check:
    """A host's own name decides which interface gloo listens on, unless GLOO_SOCKET_IFNAME does. NCCL does not ask it."""
    safe, bad = hosts == 1 or bool(environ.get("GLOO_SOCKET_IFNAME")), warn if gpus else fail
    try:
        addresses = sorted({str(entry[4][0]) for entry in resolve(name, None)})
    except OSError as error:
        if safe:
            return ok("hostname", f"{name} does not resolve; this job does without")
        fix = "add this host to DNS or /etc/hosts with its network address, or export GLOO_SOCKET_IFNAME"
        return bad("hostname", f"{name} does not resolve ({error}): gloo would listen on loopback", fix)
    found = f"{name} is {', '.join(addresses)}"
    if not safe and all(ipaddress.ip_address(address).is_loopback for address in addresses):
        fix = f"take {name} off the 127.* line in /etc/hosts, or export GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME)"
        return bad("hostname", f"{found}: gloo listens there, where no other host can reach it", fix)
    return ok("hostname", found)


def interfaces(net: Path = Path("/sys/class/net")) -> Check:
    """Interfaces that are up, with their speed in Gb/s where the driver says it."""
    up = []
    for folder in sorted(net.iterdir()):
        if folder.name == "lo" or _read(folder / "operstate") not in ("up", "unknown"):
            continue
        speed = _read(folder / "speed")
        up.append(f"{folder.name} {int(speed) / 1000:g} Gb/s" if speed.isdecimal() else folder.name)
    if not up:
        return skip("interfaces", "none is up beside loopback")
    return ok("interfaces", ", ".join(up))


def infiniband(root: Path = Path("/sys/class/infiniband")) -> Check:
    """Every port of every adapter should be active."""
    ports = {f"{p.parents[1].name}:{p.name}": p for p in sorted(root.glob("*/ports/*"))}
    if not ports:
        return skip("InfiniBand", "no adapter")
    rates = sorted({_read(port / "rate").split(" (")[0] for port in ports.values()})
    down = [name for name, port in ports.items() if "ACTIVE" not in _read(port / "state")]
    if len(down) == len(ports):
        fix = "check the cable, `ibstat`, and that a subnet manager runs; until then NCCL falls back to TCP"
        return fail("InfiniBand", f"no port is active: {', '.join(down)}", fix)
    if down:
        fix = "check cable and switch port (`ibstat`); if it is unused on purpose, leave it out with NCCL_IB_HCA"
        return warn("InfiniBand", f"{len(ports) - len(down)} ports active, down: {', '.join(down)}", fix)
    return ok("InfiniBand", f"{len(ports)} ports active, {', '.join(rates)}")


def listen() -> tuple[socket.socket, int]:
    """Answer calls on a free port from a background thread, until the socket is closed."""
    listener = socket.create_server(("", 0), backlog=256)

    def answer() -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:  # closed: the doctor is done
                return
            with caller:
                caller.sendall(ANSWER)

    threading.Thread(target=answer, daemon=True).start()
    return listener, listener.getsockname()[1]


def to_call(me: int, hosts: int) -> list[int]:
    """The other hosts that host `me` calls."""
    if hosts <= FULL_MESH:
        return [other for other in range(hosts) if other != me]
    return [(me + step) % hosts for step in (1, 2)]


def call(endpoint: Endpoint, seconds: float = 3.0) -> str:
    """Why the endpoint cannot be reached, or an empty string."""
    try:
        with socket.create_connection((endpoint.address, endpoint.port), timeout=seconds) as line:
            heard = line.recv(len(ANSWER))
        return "" if heard == ANSWER else "another program answers there"
    except TimeoutError:
        return f"no answer in {seconds:g} s"
    except OSError as error:
        return error.strerror or str(error)


def ports(me: int, endpoints: list[Endpoint]) -> Check:
    """Calls the other hosts' free TCP ports from this one, as NCCL and gloo will."""
    if len(endpoints) < 2:
        return skip("ports", "one host")
    called = [endpoints[other] for other in to_call(me, len(endpoints))]
    with ThreadPoolExecutor(len(called)) as pool:
        answers = list(pool.map(call, called))
    closed: dict[str, list[Endpoint]] = {}
    for endpoint, why in zip(called, answers, strict=True):
        if why:
            closed.setdefault(why, []).append(endpoint)
    if not closed:
        return ok("ports", f"free TCP ports of {counted(len(called), 'other host')} answer")
    low, high = (PORTS.read_text() if PORTS.exists() else "32768 60999").split()
    fix = f"let TCP ports {low}–{high} through between the nodes: NCCL and gloo listen on any of them; or choose the open "
    fix += "network with NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME"
    told = [f"{_places(ends, len(called))}: {why}" for why, ends in closed.items()]
    return fail("ports", f"cannot reach {'; '.join(told)}", fix)


def _places(endpoints: list[Endpoint], called: int) -> str:
    if len(endpoints) == 1:
        return "{} ({}:{})".format(*endpoints[0])
    return "any other host" if len(endpoints) == called else fold_names([endpoint.host for endpoint in endpoints])


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:  # a port that is down has no speed to read
        return ""
