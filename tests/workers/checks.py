"""Self-checks on real DeepSpeed, run by tests in one or two fresh processes."""

import torch

from config import load_recipe
from config.parallel import data_rank_and_size
from data.stream import open_stream
from engine import muon
from engine.dist import World, connect
from engine.self_check import Verdict, self_check


def check_all(recipe: str, cases: list[list[str]]) -> list[Verdict]:
    """The verdict on the recipe with each case's overrides."""
    world = connect(60)
    return [check(recipe, overrides, world) for overrides in cases]


def check_broken(recipe: str, cases: dict[str, list[str]]) -> dict[str, Verdict]:
    """Likewise with something broken in the engine: its name says what."""
    world, verdicts = connect(60), {}
    right = muon.orthogonalize, torch.optim.AdamW.step
    for broken, overrides in cases.items():
        if broken == "muon without orthogonalisation":
            muon.orthogonalize = lambda matrix_RC: matrix_RC / matrix_RC.norm()
        elif broken == "adamw with its second moment lost":

            def forgetful(self, closure=None):
                for state in self.state.values():
                    if "exp_avg_sq" in state:
                        state["exp_avg_sq"].zero_()
                return right[1](self, closure)

            torch.optim.AdamW.step = forgetful
        verdicts[broken] = check(recipe, overrides, world)
        muon.orthogonalize, torch.optim.AdamW.step = right
    return verdicts


def check(recipe: str, overrides: list[str], world: World) -> Verdict:
    config = load_recipe(recipe, overrides)
    rank, size = data_rank_and_size(config.engine, world.rank, world.size)
    stream = open_stream(
        config.data,
        config.batch,
        config.objective,
        seed=config.run.seed,
        vocab_size=config.model.vocab_size,
        rank=rank,
        world_size=size,
    )
    return self_check(config, stream, world)
