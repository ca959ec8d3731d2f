"""The ranks of a job connected to rank 0 by plain TCP, so that a host without a working torch can still report.

Lines of JSON, one for each message. While a rank waits for rank 0's word it answers questions for its time.
"""

import json
import socket
import time
from collections.abc import Mapping
from typing import Any

PORTS = 16
"""Ports from MASTER_PORT on of which rank 0 takes the first free one."""
ASK_TIME = "what time is it?"


class Unreachable(Exception):
    """Rank 0 cannot be reached; says why."""


class Connection:
    """One JSON value a line, each with a deadline."""

    def __init__(self, line: socket.socket):
        self.line, self.buffer = line, b""

    def send(self, value: Any, seconds: float) -> None:
        self.line.settimeout(seconds)
        self.line.sendall(json.dumps(value).encode() + b"\n")

    def receive(self, seconds: float) -> Any:
        """Raises TimeoutError, or ConnectionError when the other side is gone."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            self.line.settimeout(max(deadline - time.monotonic(), 0.2))  # what has arrived is read in any case
            part = self.line.recv(1 << 16)
            if not part:
                raise ConnectionError("closed the connection")
            self.buffer += part
            if time.monotonic() > deadline and b"\n" not in self.buffer:
                raise TimeoutError
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)


class Ranks:
    """This rank among the others."""

    def __init__(self, rank: int, size: int, connections: dict[int, Connection], addresses: dict[int, str], port: int):
        self.rank, self.size, self.connections, self.addresses, self.port = rank, size, connections, addresses, port
        self.lost: dict[int, str] = {}
        """Ranks that rank 0 no longer hears, and why."""

    def gather(self, value: Any, seconds: float) -> list[Any]:
        """Every rank's value on rank 0, None for those that are silent; an empty list elsewhere."""
        if self.rank:
            self.connections[0].send(value, seconds)
            return []
        deadline, values = time.monotonic() + seconds, [value] + [None] * (self.size - 1)
        for rank, connection in list(self.connections.items()):
            try:
                values[rank] = connection.receive(deadline - time.monotonic())
            except OSError as error:
                self._lose(rank, error, seconds)
        return values

    def share(self, value: Any, seconds: float) -> Any:
        """Rank 0's value on every rank."""
        if self.rank:
            while (message := self.connections[0].receive(seconds)) == ASK_TIME:
                self.connections[0].send(time.time(), seconds)
            return message["value"]
        for rank, connection in list(self.connections.items()):
            try:
                connection.send({"value": value}, seconds)
            except OSError as error:
                self._lose(rank, error, seconds)
        return value

    def clock(self, rank: int, questions: int = 5) -> tuple[float, float] | None:
        """Seconds by which the rank's clock is ahead of rank 0's, from the quickest of some answers (as NTP does, RFC
        5905), and the seconds of that round trip. Only while the rank waits in `share`."""
        answers = []
        try:
            for _ in range(questions if rank in self.connections else 0):
                asked = time.time()
                self.connections[rank].send(ASK_TIME, 5)
                theirs = self.connections[rank].receive(5)
                heard = time.time()
                answers.append((heard - asked, theirs - (asked + heard) / 2))
        except OSError as error:
            self._lose(rank, error, 5)
        return (min(answers)[1], min(answers)[0]) if answers else None

    def close(self) -> None:
        for connection in self.connections.values():
            connection.line.close()

    def _lose(self, rank: int, error: OSError, seconds: float) -> None:
        self.lost[rank] = f"silent for {seconds:g} s" if isinstance(error, TimeoutError) else str(error)
        self.connections.pop(rank).line.close()


def job_ports(environ: Mapping[str, str]) -> list[int]:
    """Ports to meet at. torchrun's agent keeps MASTER_PORT for its own store."""
    first = int(environ["MASTER_PORT"]) + (environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True")
    return [port for port in range(first, first + PORTS) if port < 65536]


def meet(rank: int, size: int, address: str, ports: list[int], job: str, seconds: float) -> Ranks:
    """Connect all ranks to rank 0. After `seconds` rank 0 goes on without those that did not come.

    Raises Unreachable on the others, and on rank 0 if it gets no port.
    """
    if size == 1:
        return Ranks(0, 1, {}, {}, ports[0])
    return (
        _wait_for_all(size, ports, job, seconds) if rank == 0 else _find_main(rank, size, address, ports, job, seconds)
    )


def _wait_for_all(size: int, ports: list[int], job: str, seconds: float) -> Ranks:
    connections: dict[int, Connection] = {}
    addresses: dict[int, str] = {}
    deadline = time.monotonic() + seconds
    with _take_port(ports) as listener:
        port = listener.getsockname()[1]
        while len(connections) < size - 1 and (left := deadline - time.monotonic()) > 0:
            listener.settimeout(left)
            try:
                line, (host, *_) = listener.accept()
                connection = Connection(line)
                hello = connection.receive(2)
                connection.send(job, 2)
            except (OSError, ValueError):  # nobody came, or a stranger did
                continue
            if isinstance(hello, dict) and hello.get("job") == job:
                connections[hello["rank"]], addresses[hello["rank"]] = connection, host
    return Ranks(0, size, connections, addresses, port)


def _take_port(ports: list[int]) -> socket.socket:
    for port in ports:
        try:
            return socket.create_server(("", port), backlog=1024)
        except OSError:
            continue
    raise Unreachable(f"ports {ports[0]} to {ports[-1]} of this host are all taken")


def _find_main(rank: int, size: int, address: str, ports: list[int], job: str, seconds: float) -> Ranks:
    deadline, reasons = time.monotonic() + seconds, {}
    while time.monotonic() < deadline:
        for port in ports:
            if time.monotonic() > deadline:  # each silent port takes seconds
                break
            try:
                line = socket.create_connection((address, port), timeout=3)
                connection = Connection(line)
                connection.send({"job": job, "rank": rank}, 3)
                if connection.receive(3) == job:
                    return Ranks(rank, size, {0: connection}, {}, port)
                reasons[port] = "another program answers"
            except socket.gaierror as error:
                raise Unreachable(f"{address} does not resolve on this host ({error.strerror})") from None
            except (OSError, ValueError) as error:
                reasons[port] = "no answer" if isinstance(error, TimeoutError) else str(error)
        time.sleep(0.1)
    told = reasons.get(ports[0], "no answer")
    raise Unreachable(f"rank 0 does not answer at {address}:{ports[0]} to {ports[-1]} in {seconds:g} s ({told})")
