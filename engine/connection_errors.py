"""What the errors of torch.distributed mean: who is missing, and what to do about it."""

import re
import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch.distributed as dist

from config.errors import CommunicationError, ConfigError

PROBE_SECONDS = 2.0
CONTINUES = "The same command continues from the newest checkpoint"


def is_connection_error(error: BaseException) -> bool:
    """Gloo raises bare RuntimeErrors that name its own source files."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def rendezvous_error(error: Exception, environ: Mapping[str, str], timeout: float) -> CommunicationError:
    """Why the ranks could not meet at MASTER_ADDR:MASTER_PORT within `timeout` seconds."""
    text, host = str(error), socket.gethostname()
    place, waited = f"{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}", f"within {timeout:g} s"
    if "EADDRINUSE" in text:
        return CommunicationError(
            f"port {environ['MASTER_PORT']} on {host} is in use by another process, perhaps an earlier run: end that, or "
            "choose another port: deepspeed --master_port N, accelerate launch --main_process_port N, MASTER_PORT=N"
        )
    arrived = re.search(r"(\d+)/(\d+) clients joined", text)
    if arrived:
        return CommunicationError(
            f"{arrived[1]} of {arrived[2]} ranks arrived at {place} {waited} (engine.communication_timeout): see whether "
            "the other hosts started, with the same address, port and number of ranks, and whether they reach this port"
        )
    if isinstance(error, dist.DistNetworkError):
        return CommunicationError(
            f"rank {environ['RANK']} on {host} could not reach rank 0 at {place} {waited} (engine.communication_timeout): "
            "see whether MASTER_ADDR is the host of rank 0, whether rank 0 started, and whether its port is open"
        )
    return CommunicationError(
        f"rank {environ['RANK']} on {host} met the others at {place} but could not connect to them ({_reason(text)}): open "
        "all ports between the hosts, or name their network: GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME=eth0"
    )


def lost_connection(
    error: BaseException, rank: int, hosts: tuple[str, ...], timeout: float, port: int
) -> CommunicationError | ConfigError:
    """Why a collective failed, as far as it can be known from here.

    Args:
        hosts: host of each rank.
        port: tried on the hosts that may be gone; open or refused, they answer.
    """
    text = str(error)
    duplicate = re.search("Duplicate GPU.*", text)
    if duplicate:
        return ConfigError(
            f"rank {rank} on {hosts[rank]}: {duplicate[0].strip()}: every rank needs a GPU of "
            "its own: start fewer ranks on a node, or show each of them another one in CUDA_VISIBLE_DEVICES"
        )
    if re.search("timed? ?out", text, re.IGNORECASE):
        what = f"no answer from the other ranks within {timeout:g} s (engine.communication_timeout)"
    else:
        what = f"the connection to another rank broke ({_reason(text)})"
    others = set(hosts) - {hosts[rank]}
    silent = silent_hosts(others, port)
    if silent:
        where = " and ".join(f"{host} ({_ranks(host, hosts)})" for host in silent)
        cause = f"{where} cannot be reached from here: mend the link or the host, or leave it out"
    else:
        reached = "the other hosts can be reached, so " if others else ""
        cause = f"{reached}a rank ended or is stuck: its own last lines say why"
    return CommunicationError(f"rank {rank} on {hosts[rank]}: {what}; {cause}. {CONTINUES}")


def silent_hosts(hosts: Iterable[str], port: int) -> list[str]:
    """The hosts that do not answer a TCP connection. A name that does not resolve here tells nothing."""

    def answers(host: str) -> bool:
        try:
            socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
        except (ConnectionRefusedError, socket.gaierror):
            return True
        except OSError:
            return False
        return True

    ordered = sorted(hosts)
    with ThreadPoolExecutor(max_workers=64) as pool:
        return [host for host, answer in zip(ordered, pool.map(answers, ordered), strict=True) if not answer]


def _ranks(host: str, hosts: tuple[str, ...]) -> str:
    ranks = [rank for rank, other in enumerate(hosts) if other == host]
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def _reason(text: str) -> str:
    """The first sentence, without the place in the source that gloo puts in front."""
    return re.sub(r"^\[[^\]]*\.cc:\d+\] *", "", text).splitlines()[0].split(". ")[0].rstrip(".")
