"""Many ranks as threads of one process: what they exchange is counted, and nothing is sent."""

import pickle
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import engine.dist
from engine.dist import World


class ManyRanks:
    """Stands in for torch.distributed in engine/dist.py."""

    ReduceOp = torch.distributed.ReduceOp

    def __init__(self, size: int) -> None:
        self.size = size
        self.exchanges = Counter[int]()
        """Collectives that each rank took part in."""
        self.received = Counter[int]()
        """Bytes that each rank was sent."""
        self._own = threading.local()
        self._slots: list[Any] = [None] * size
        self._all_here = threading.Barrier(size)

    def run(self, function: Callable[[World], Any]) -> list[Any]:
        """Each rank's return value. The first exception of a rank is raised."""
        results: list[Any] = [None] * self.size
        hosts = ("localhost",) * self.size
        errors: list[BaseException] = []

        def one_rank(rank: int) -> None:
            self._own.rank = rank
            try:
                results[rank] = function(World(rank, self.size, torch.device("cpu"), hosts))
            except BaseException as error:
                errors.append(error)
                self._all_here.abort()

        threads = [threading.Thread(target=one_rank, args=(rank,)) for rank in range(self.size)]
        with patch.object(engine.dist, "dist", self):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        return results

    def get_rank(self) -> int:
        return self._own.rank

    def get_world_size(self) -> int:
        return self.size

    def all_reduce(self, tensor: Tensor, op: Any = torch.distributed.ReduceOp.SUM) -> None:
        values = torch.stack(self._exchange(tensor.clone()))
        self.received[self.get_rank()] += tensor.nbytes
        tensor.copy_(values.amax(0) if op == self.ReduceOp.MAX else values.sum(0))

    def all_gather_object(self, values: list[Any], value: Any) -> None:
        values[:] = self._gather(value)

    def gather_object(self, value: Any, values: list[Any] | None) -> None:
        if self.get_rank() == 0:
            assert values is not None
            values[:] = self._gather(value)
        else:
            self._exchange(value)

    def broadcast_object_list(self, values: list[Any], src: int) -> None:
        values[:] = self._exchange(list(values))[src]
        self.received[self.get_rank()] += len(pickle.dumps(values))

    def barrier(self) -> None:
        self._exchange(None)

    def _gather(self, value: Any) -> list[Any]:
        values = self._exchange(value)
        self.received[self.get_rank()] += len(pickle.dumps(values))
        return values

    def _exchange(self, value: Any) -> list[Any]:
        rank, profile = self.get_rank(), sys.getprofile()
        sys.setprofile(None)  # how the threads wait is none of the ranks' work
        self.exchanges[rank] += 1
        self._slots[rank] = value
        self._all_here.wait()
        values = list(self._slots)
        self._all_here.wait()
        sys.setprofile(profile)
        return values
