"""`tasks generate` in conversation at the terminal that is its standard input: HISTORY OPTIONS…"""

import argparse
import fcntl
import signal
import sys
import termios
from pathlib import Path

import tasks.generate_interactive as room
from config.objective_schema import CausalLM
from data.tokenizer import byte_tokenizer
from tasks.checkpoints import Trained
from tasks.generate import add_arguments
from tests.model.tiny import tiny_config, tiny_model


def main(history: str, *arguments: str) -> None:
    fcntl.ioctl(sys.stdin, termios.TIOCSCTTY, 0)  # so that Ctrl-C typed there is a signal here
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a background job has it ignored
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    config = tiny_config(vocab_size=257, max_positions=4096)
    room.HISTORY = Path(history)
    trained = Trained(tiny_model(config), byte_tokenizer(), config, CausalLM(), None)
    room.converse(trained, parser.parse_args(["somewhere", *arguments]))


if __name__ == "__main__":
    main(*sys.argv[1:])
