"""Tiny models behind a real server: in a thread of this process, on a free port."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import uvicorn

from config import BertConfig, GPTConfig, RunConfig, T5Config
from config.objective_schema import CausalLM, MaskedLM, ObjectiveConfig
from config.supervised_schema import Instruction, SequenceToSequence
from data.specials import BERT, T5
from data.tokenizer import byte_tokenizer
from model import build, init_weights
from tasks.checkpoints import Trained
from tasks.serve.app import create_app
from tasks.serve.limits import Limits
from tasks.serve.served import Served

SIZES = {"num_layers": 2, "hidden_size": 32, "num_heads": 4}


def decoder(folder: Path = Path("none"), max_positions: int = 256) -> Served:
    config = GPTConfig(vocab_size=257, max_positions=max_positions, **SIZES)
    return Served("tiny-gpt", Trained(filled(config), byte_tokenizer(), config, CausalLM(), None), folder)


def instructed() -> Served:
    """The decoder, as if it had been fine-tuned on prompts and answers."""
    served = decoder()
    return Served(served.name, replace(served.trained, objective=Instruction()), served.folder)


def translating(objective: ObjectiveConfig = SequenceToSequence()) -> Served:  # noqa: B008
    tokenizer = byte_tokenizer().with_special_tokens(T5)
    config = T5Config(vocab_size=tokenizer.vocab_size, max_positions=256, **SIZES)
    return Served("tiny-t5", Trained(filled(config), tokenizer, config, objective, None), Path("none"))


def encoder(max_positions: int = 128) -> Served:
    config = BertConfig(vocab_size=261, max_positions=max_positions, pooler=False, **SIZES)
    tokenizer = byte_tokenizer().with_special_tokens(BERT)
    sections: dict = {
        "data": {"datasets": [{"path": "none"}], "row_length": max_positions},
        "batch": {"global_batch_size": 1, "micro_batch_size": 1},
    }
    sections |= {"model": config.model_dump(), "optimizer": {"lr": 1e-3}, "schedule": {"steps": 1}}
    recipe = RunConfig.model_validate(sections)
    return Served("tiny-bert", Trained(filled(config), tokenizer, config, MaskedLM(), recipe), Path("none"))


def filled(config, model=None):
    model = model or build(config)
    init_weights(model, config, seed=0)
    for weight in model.parameters():  # at initialisation all texts are nearly alike
        weight.data.mul_(3)
    model.embed_tokens.weight.data[128:256] = 0  # bytes of no ASCII text are never written
    return model.eval()


@contextmanager
def serving(served: Served, limits: Limits = Limits(), keys: tuple[str, ...] = ()) -> Iterator[str]:  # noqa: B008
    """The server's address."""
    # Named as TCP, as uvicorn's own is: only then does asyncio turn off Nagle's algorithm, which costs 40 ms an answer.
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        app = create_app(served, limits, keys)
        server = uvicorn.Server(uvicorn.Config(app.state.guard, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
