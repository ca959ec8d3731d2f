"""Attention kernels behind one signature, what each of them needs, and the choice between them."""

from model.kernels.backend import Attend, Backend, Connection, Kernel
from model.kernels.choose import BACKENDS, choose_kernel, find_obstacle

__all__ = ["BACKENDS", "Attend", "Backend", "Connection", "Kernel", "choose_kernel", "find_obstacle"]
