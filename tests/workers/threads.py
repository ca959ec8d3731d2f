"""Run by tests/engine/test_threads.py on each rank."""

import os

import torch

import engine.device
from config import Choice
from engine.dist import connect


def choices() -> list[Choice[int]]:
    """With OMP_NUM_THREADS, on shared cores, and with a core for each rank."""
    world = connect(60)
    torch.set_num_threads(4)
    told = engine.device.choose_threads()
    del os.environ["OMP_NUM_THREADS"]
    engine.device.usable_cores = lambda: {0, 1, 2, 3}
    shared = engine.device.choose_threads()
    engine.device.usable_cores = lambda: {world.rank}
    return [told, shared, engine.device.choose_threads()]
