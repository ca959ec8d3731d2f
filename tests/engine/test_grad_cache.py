"""GradCache, hard negatives, masked duplicates and Matryoshka widths: against closed forms, plain torch and one process."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from config.contrastive_schema import Contrastive, ContrastivePairs
from data.batch import Batch
from data.similar import join_similar
from data.tokenizer import byte_tokenizer
from engine.grad_cache import cached_objectives
from engine.objective import choose_objective, layout_of
from engine.reference import Reference
from engine.similarity import candidates_of, info_nce
from model import build, compile_blocks, init_weights
from tests.ranks import run_ranks
from tests.tiny import tiny_config
from tests.workers.contrastive import curves, first_steps
from tests.workers.objectives import make_stream

VOCAB_SIZE = 320
OBJECTIVE = {
    "name": "contrastive_pairs",
    "hard_negatives": 2,
    "learnable_temperature": True,
    "temperature": 0.5,  # at 0.05 gradients are 10 and more, so that their rounding alone is over 1e-6
    "mask_duplicates": True,
    "dimensions": [8, 32],
    "dimension_weights": [1, 3],
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, str]:
    """24 pairs with three hard negatives each; every sixth repeats the positive of the one before."""
    folder, draw = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)

    def text() -> str:
        return " ".join(draw.choice(["row", "model", "token", "loss", "step", "rank"], 3).tolist())

    lines = [{"anchor": text(), "positive": text(), "negatives": [text() for _ in range(3)]} for _ in range(24)]
    for number in range(1, 24, 6):
        lines[number]["positive"] = lines[number - 1]["positive"]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    byte_tokenizer().save(folder / "tokenizer.json")
    return {"train": str(folder / "pairs.jsonl"), "valid": str(folder / "pairs.jsonl"), "tokenizer": str(folder)}


def case_on(pairs: dict[str, str], micro: int, ds_config: str = "zero0", model=(), **objective) -> dict:
    return {
        "data": {"datasets": (), "pairs": pairs, "row_length": 24, "prefetch_steps": 0},
        "model": {"vocab_size": VOCAB_SIZE, "max_positions": 32, **dict(model)},
        "objective": {**OBJECTIVE, "negatives_from": "global_batch", **objective},
        "batch": {"global_batch_size": 8, "micro_batch_size": micro},
        "engine": {"ds_config": ds_config},
        "optimizer": {"grad_clip": 0.0},
    }


def largest_difference(actual, expected) -> float:
    assert actual.keys() == expected.keys()
    return max((actual[name] - expected[name]).abs().max().item() for name in expected)


def test_ranks_micro_batches_and_stages_give_the_gradients_of_one_whole_batch(pairs):
    """The whole batch in one forward pass, by plain torch; and GradCache on one and two ranks at each ZeRO stage."""
    config = tiny_config(**case_on(pairs, 8, negatives_from="micro_batch"))
    reference = Reference(config)
    stream = make_stream(config, type("World", (), {"rank": 0, "size": 1}))
    loss, gradients = reference.gradients(stream.step(0)[0])
    one = run_ranks(1, first_steps, [case_on(pairs, micro) for micro in (8, 4, 2, 1)])[0]
    stages = ["zero0", "zero1", "zero2", "zero3"]
    cases = [case_on(pairs, micro, stage) for stage in stages for micro in (2, 1)]
    two = run_ranks(2, first_steps, [case_on(pairs, 4), *cases])[0]  # the first in one forward pass, without GradCache
    held_out = one[0][2]
    for found_loss, found, found_held_out in [*one, *two]:
        assert found_loss == pytest.approx(loss, abs=1e-6)
        assert largest_difference(found, gradients) <= 1e-6
        assert found_held_out == pytest.approx(held_out, abs=2e-5)  # after an update


def test_the_negatives_of_a_micro_batch_are_fewer(pairs):
    """Otherwise the test above could not fail: without GradCache two micro-batches give another loss."""
    fewer = case_on(pairs, 4, negatives_from="micro_batch")
    apart, whole = run_ranks(1, curves, [fewer, case_on(pairs, 4)], 1)[0]
    assert whole[0] - apart[0] > 0.3  # chance is the logarithm of 24 and of 12 candidates


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_second_pass_draws_the_dropout_of_the_first(pairs, dropout):
    """Against the graph of both micro-batches held at once."""
    config = tiny_config(**case_on(pairs, 4, model={"dropout": dropout}))
    objective = config.objective
    assert isinstance(objective, ContrastivePairs)
    batches, _ = make_stream(config, type("World", (), {"rank": 0, "size": 1})).step(0)
    model, device = Reference(config).model.train(), torch.device("cpu")

    def together(model: torch.nn.Module, tokens_RT: torch.Tensor, layout: object) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = []
        for number, batch in enumerate(batches):
            torch.manual_seed(number)
            out, temperature = model(torch.from_numpy(batch.tokens_BT), layout=layouts[number])
            hidden.append(out.unflatten(0, (4, 4)))
        return torch.cat(hidden, dim=1).flatten(0, 1), temperature

    layouts = [layout_of(batch, device) for batch in batches]
    whole = choose_objective(objective, alone=True)
    expected = whole(lambda tokens, layout: together(model, tokens, layout), join_similar(batches), device)[
        "contrastive"
    ]
    expected.total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    cached = cached_objectives(objective, model, batches, device, lambda number: torch.manual_seed(number))
    losses = [one(model, batch, device)["contrastive"] for one, batch in zip(cached, batches, strict=True)]
    sum(loss.total for loss in losses).backward()
    assert sum(loss.total.item() for loss in losses) == pytest.approx(expected.total.item(), abs=1e-5)
    assert sum(int(loss.count) for loss in losses) == int(expected.count) == 8
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert largest_difference(found, gradients) <= 5e-6 * max(g.abs().max().item() for g in gradients.values())


@pytest.mark.slow
def test_compiled_blocks_draw_the_same_dropout_without_and_with_a_graph():
    """The two passes are compiled apart."""
    config = tiny_config(model={"preset": "gpt2", "num_kv_heads": 4, "num_layers": 1, "dropout": 0.3})
    model = build(config.model).train()
    init_weights(model, config.model, 0)
    compile_blocks(model)
    tokens = torch.arange(96).view(4, 24) % 64

    def hidden(seed: int, learns: bool) -> torch.Tensor:
        torch.manual_seed(seed)
        with torch.set_grad_enabled(learns):
            return model(tokens).detach()

    first = hidden(3, learns=False)
    assert torch.equal(first, hidden(3, learns=True))
    assert (first - hidden(4, learns=True)).abs().max() > 0.1


def vectors(rows: int, width: int = 6) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def batch_of(anchors: int, sides: int, text_ids: list[int] | None = None) -> Batch:
    rows = anchors * sides
    return Batch(
        np.zeros((rows, 4), np.int64),
        None,
        lengths_B=np.full(rows, 4),
        pair_labels_B=np.arange(anchors),
        text_ids_B=None if text_ids is None else np.array(text_ids),
        parts=("contrastive",),
    )


def test_hard_negatives_are_negatives_of_every_anchor():
    """Equation 5 of arXiv:2104.08821 (SimCSE) written out, for two anchors with one hard negative each."""
    vector_RD = vectors(6)
    loss = info_nce(vector_RD[:2], torch.arange(2), candidates_of(vector_RD, batch_of(2, 3)), 0.5, ContrastivePairs())
    expected = 0.0
    for a in range(2):
        scores = [F.cosine_similarity(vector_RD[a], vector_RD[c], dim=0).item() / 0.5 for c in range(2, 6)]
        expected += math.log(sum(map(math.exp, scores))) - scores[a]
    assert loss.total.item() == pytest.approx(expected, abs=1e-12) and int(loss.count) == 2


def test_masked_duplicates_are_no_negatives():
    """Anchors 0 and 1 have equal positives, anchors 1 and 2 are equal; candidate 4 is a copy of positive 2."""
    texts = [10, 11, 11, 20, 20, 21, 30, 31, 21]
    vector_RD = vectors(9)
    allowed = {0: [0, 2, 3, 4, 5], 1: [1, 3, 4, 5], 2: [2, 0, 3, 4]}
    mine = candidates_of(vector_RD, batch_of(3, 3, texts))
    loss = info_nce(vector_RD[:3], torch.arange(3), mine, 1.0, ContrastivePairs(mask_duplicates=True))
    scores = F.normalize(vector_RD[:3], dim=1) @ F.normalize(vector_RD[3:], dim=1).T
    expected = sum((scores[a, places].logsumexp(0) - scores[a, a]).item() for a, places in allowed.items())
    assert loss.total.item() == pytest.approx(expected, abs=1e-12)


def test_matryoshka_is_the_weighted_mean_of_the_losses_of_truncated_vectors():
    vector_RD = vectors(8)

    def loss(vector_RD: torch.Tensor, **settings) -> float:
        mine = candidates_of(vector_RD, batch_of(4, 2))
        return info_nce(vector_RD[:4], torch.arange(4), mine, 0.1, Contrastive(**settings)).total.item()

    expected = (3 * loss(vector_RD[:, :2]) + loss(vector_RD)) / 4
    assert loss(vector_RD, dimensions=[2, 6], dimension_weights=[3, 1]) == pytest.approx(expected, abs=1e-12)
    assert loss(vector_RD, dimensions=[6]) == pytest.approx(loss(vector_RD), abs=1e-12)


def test_a_temperature_is_learned_in_low_precision_as_in_fp32(pairs):
    """ZeRO 3 builds the model in bf16, and wants all of it in one precision."""
    low = case_on(pairs, 4)
    low["engine"] = {"ds_config": "zero3", "precision": "bf16"}
    expected, found = run_ranks(1, curves, [case_on(pairs, 4), low], 2)[0]
    assert found == pytest.approx(expected, abs=0.02)


def test_labelled_pairs_are_learned(pairs, tmp_path):
    """A capital's positive is its small letter; chance is ln 8."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWX"
    (tmp_path / "letters.tsv").write_text("".join(f"{6 * letter}\t{6 * letter.lower()}\n" for letter in letters))
    letters_alone = {**pairs, "train": str(tmp_path / "letters.tsv"), "valid": str(tmp_path / "letters.tsv")}
    objective = {"temperature": 0.1, "hard_negatives": 0, "dimensions": [], "dimension_weights": []}
    case = {**case_on(letters_alone, 2, "zero2", **objective), "schedule": {"steps": 60}}
    (losses,) = run_ranks(2, curves, [case], 60)[0]
    assert losses[0] > 1.5 and sum(losses[-5:]) / 5 < 0.5, losses
