"""check this machine, or every node of a job: GPUs, torch, NCCL or gloo between all ranks, disks, network, limits"""

from launch.doctor.command import add_arguments, run

__all__ = ["add_arguments", "run"]
