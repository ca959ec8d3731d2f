"""A rank that is lost, as the other one sees it."""

import time

import torch
import torch.distributed as dist

from config import CommunicationError
from engine.dist import all_sum, connected


def message_when_the_other(fate: str) -> str:
    """What rank 0 reads when rank 1 leaves, or stays away for longer than the time-out of two seconds."""
    try:
        with connected(2) as world:
            if world.rank == 0:
                all_sum([1.0], torch.device("cpu"))
            elif fate == "leaves":
                dist.destroy_process_group()
                raise KeyboardInterrupt
            else:
                time.sleep(4)
                raise KeyboardInterrupt
    except CommunicationError as error:
        return str(error)
    except KeyboardInterrupt:
        return ""
    return "no error"
