"""Process group, rank and device: the same under deepspeed, accelerate, torchrun, srun and plain python."""

import functools
import logging
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from config.errors import GroundworkError
from config.rendezvous import device_index, rendezvous_environment
from engine.connection_errors import is_connection_error, lost_connection, rendezvous_error
from engine.memory_errors import is_out_of_memory, out_of_memory

T = TypeVar("T")
SLOW_START_SECONDS = 60.0


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device
    hosts: tuple[str, ...]
    """Of each rank."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def connected(timeout_seconds: float) -> Iterator[World]:
    """Join the process group, and leave it at the end if all ranks leave alike; else this would wait for them.

    Raises CommunicationError where another rank, host or link has failed, and OutOfMemory where memory runs out.
    """
    with mock.patch.dict(os.environ):  # what this process does afterwards is no part of these ranks
        world = connect(timeout_seconds)
        try:
            yield world
        except Exception as error:
            if is_connection_error(error):
                port = int(os.environ["MASTER_PORT"])
                raise lost_connection(error, world.rank, world.hosts, timeout_seconds, port) from error
            if is_out_of_memory(error):
                raise out_of_memory(error, world.rank, world.hosts[world.rank]) from error
            if getattr(error, "everywhere", False):
                dist.destroy_process_group()
            raise
        dist.destroy_process_group()


def connect(timeout_seconds: float, environ: MutableMapping[str, str] = os.environ) -> World:
    """Join the process group and choose the device.

    Every group gets `timeout_seconds`, those that ZeRO makes included: DeepSpeed creates them without a time-out,
    so a lost link would hang far longer than asked. Raises CommunicationError if the ranks do not meet, and ConfigError
    if there are too few devices.
    """
    environ.update(rendezvous_environment(environ, _free_port()))
    _quiet()
    if not torch.accelerator.is_available():
        environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found none
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    # Only inference uses this op, yet the first init would compile it: minutes, and a killed build leaves a lock. Asking
    # DeepSpeed which ops there are would run compilers as well, and this is the only one that it looks up.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}  # type: ignore[attr-defined]
    # Importing DeepSpeed's own Muon, which is not used here, compiles a function of it: 0.9 s for importing the compilers.
    with mock.patch.dict(os.environ, TORCHDYNAMO_DISABLE="1"):
        import deepspeed.runtime.zero.muon.muon_optimizer
    timeout = timedelta(seconds=timeout_seconds)
    if not isinstance(dist.new_group, functools.partial):
        dist.new_group = functools.partial(dist.new_group, timeout=timeout)
    accelerator = get_accelerator()
    device = torch.device("cpu")
    if accelerator.device_name() != "cpu":
        device = torch.device(accelerator.device_name(device_index(environ, accelerator.device_count())))
        accelerator.set_device(device.index)
    try:
        with _announced_if_slow(environ, timeout_seconds):
            deepspeed.init_distributed(accelerator.communication_backend_name(), timeout=timeout, verbose=False)
    except Exception as error:
        if not is_connection_error(error):
            raise
        raise rendezvous_error(error, environ, timeout_seconds) from error
    return World(dist.get_rank(), dist.get_world_size(), device, tuple(gather_objects(socket.gethostname())))


@contextmanager
def _announced_if_slow(environ: Mapping[str, str], timeout_seconds: float) -> Iterator[None]:
    """One rank of each node says what it waits for."""
    text = (
        f"rank {environ['RANK']} on {socket.gethostname()} waits for all {environ['WORLD_SIZE']} ranks at "
        f"{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}, up to {timeout_seconds:g} s (engine.communication_timeout)"
    )
    timer = threading.Timer(SLOW_START_SECONDS, print, [text], {"flush": True})
    timer.daemon = True
    if environ["LOCAL_RANK"] == "0":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def barrier() -> None:
    dist.barrier()


def all_sum(values: list[float], device: torch.device) -> list[float]:
    """Sum of each value over all ranks, in fp64."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def all_max(value: int, device: torch.device) -> int:
    """Largest of all ranks' values."""
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def gather_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """The rows of all ranks, equally many of each, and the place of this rank's first one among them. Each rank's loss
    sends its gradients to the rows of all."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor, 0
    return _GatherRows.apply(tensor), dist.get_rank() * len(tensor)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        gathered = tensor.new_empty(dist.get_world_size() * len(tensor), *tensor.shape[1:])
        dist.all_gather_into_tensor(gathered, tensor.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.narrow(0, dist.get_rank() * ctx.rows, ctx.rows)


def together(action: Callable[[], T], world: World) -> T:
    """Run `action` on every rank and return its result; one rank's failure becomes an error on every rank.

    Without this, the other ranks would wait in their next collective for one that has left.
    """
    result: Any = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as raised:
        error = raised
    failure = first_report((type(error), _in_words(error, world.rank)) if error else None, world)
    if failure is None:
        return result
    if error is not None and not isinstance(error, GroundworkError | OSError):
        raise error
    kind, message = failure
    raise everywhere(kind(message) if issubclass(kind, GroundworkError) else GroundworkError(message))


def first_report(report: T | None, world: World) -> T | None:
    """The report of the first rank that has one, on every rank. While none has, the ranks exchange one number."""
    if not all_max(int(report is not None), world.device):
        return None
    return next(found for found in gather_objects(report) if found is not None)


def everywhere(error: GroundworkError) -> GroundworkError:
    """Mark an error that every rank raises alike."""
    error.everywhere = True
    return error


def _in_words(error: Exception, rank: int) -> str:
    if isinstance(error, GroundworkError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or f'rank {rank}'}: {error.strerror or error}"
    return f"rank {rank} failed: {type(error).__name__}: {error}"


def gather_objects(value: Any) -> list[Any]:
    """Every rank's `value`, in rank order, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_to_main(value: Any, world: World) -> list[Any]:
    """Every rank's `value`, in rank order, on rank 0; nothing elsewhere."""
    values: list[Any] = [None] * world.size if world.is_main else []
    dist.gather_object(value, values if world.is_main else None)
    return values


def from_main(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _quiet() -> None:
    """Keep DeepSpeed's start-up chatter and its per-collective FutureWarning off the screen; its warnings stay.

    All but one: that SGD, RMSprop and Lion are untested under ZeRO. They are tested here, against torch.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(deepspeed|torch\.distributed)")
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())
