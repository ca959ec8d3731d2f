"""Losses of the objectives: against closed forms, against one process, and through DeepSpeed on one and two ranks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from config.contrastive_schema import Contrastive
from data.tokenizer import byte_tokenizer
from engine.reference import Reference
from engine.similarity import Temperature, pool
from tests.data.made import VOCAB_SIZE, make_corpus, numbered_documents
from tests.labelled import write_examples
from tests.ranks import run_ranks
from tests.tiny import tiny_config
from tests.workers.objectives import contrastive_gradients, make_stream, train_objectives, train_temperature

BERT = {"family": "bert", "preset": "bert", "dropout": 0.0, "vocab_size": VOCAB_SIZE, "num_kv_heads": None}
MODERN = {**BERT, "preset": "modernbert", "local_window": 4}
T5 = {"family": "t5", "preset": "t5_v1_1", "vocab_size": VOCAB_SIZE, "num_kv_heads": None}
GPT = {"vocab_size": VOCAB_SIZE}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    lengths = np.random.default_rng(1).integers(3, 60, 120).tolist()
    return make_corpus(tmp_path_factory.mktemp("corpora") / "numbered", numbered_documents(lengths))


def test_negatives_of_two_ranks_are_those_of_one_process():
    (whole_loss, whole_count, whole), *_ = run_ranks(1, contrastive_gradients, 8)
    ranks = run_ranks(2, contrastive_gradients, 8)
    assert sum(count for _, count, _ in ranks) == whole_count == 7
    assert sum(loss for loss, _, _ in ranks) == pytest.approx(whole_loss, abs=1e-9)
    for number, expected in enumerate(whole):
        actual = sum(gradients[number] for _, _, gradients in ranks)
        difference = (actual - expected).abs().max().item()
        assert difference <= 1e-6, f"gradient {number}: {difference:.1e}"


def test_info_nce_is_the_cross_entropy_of_similarities():
    """Equation 4 of arXiv:1807.03748 with a cosine over a temperature, written out."""
    generator = torch.Generator().manual_seed(0)
    input_2RD = torch.randn(2, 8, 12, generator=generator, dtype=torch.float64)
    weight_DD = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    anchor, positive = input_2RD @ weight_DD
    expected = 0.0
    for a in range(7):
        scores = [F.cosine_similarity(anchor[a], positive[j], dim=0).item() / 0.3 for j in range(7)]
        expected -= scores[a] - math.log(sum(map(math.exp, scores)))
    (loss, count, _), *_ = run_ranks(1, contrastive_gradients, 8)
    assert (loss, count) == (pytest.approx(expected, abs=1e-9), 7)


def test_pooling_looks_at_real_tokens_only():
    hidden = torch.arange(24.0).view(2, 4, 3)
    lengths = torch.tensor([2, 4])
    spoilt = hidden.clone()
    spoilt[0, 2:] = 1e9
    for pooling, first in [("cls", hidden[0, 0]), ("last", hidden[0, 1]), ("mean", hidden[0, :2].mean(0))]:
        torch.testing.assert_close(pool(spoilt, lengths, pooling)[0], first)
    torch.testing.assert_close(pool(hidden, lengths, "mean")[1], hidden[1].mean(0))


def test_a_temperature_stops_at_its_limit_and_comes_back():
    temperature = Temperature(0.05)
    assert temperature().item() == pytest.approx(0.05)
    with torch.no_grad():
        temperature.log_scale.fill_(9.0)
    assert temperature().item() == pytest.approx(0.01)
    temperature().sum().backward()  # less of it would be a steeper scale
    assert temperature.log_scale.grad.item() == 0
    temperature.log_scale.grad = None
    (-temperature()).sum().backward()
    assert temperature.log_scale.grad.item() > 0


CASES = {
    "fim": {"model": GPT, "objective": {"fim_rate": 0.8}},
    "fim, documents apart": {"model": GPT, "objective": {"fim_rate": 0.8}, "data": {"document_masking": True}},
    "mlm": {"model": MODERN, "objective": {"mask_rate": 0.3}},
    "mlm, documents apart": {"model": MODERN, "objective": {"mask_rate": 0.3}, "data": {"document_masking": True}},
    "nsp": {"model": BERT, "objective": {"pairs": "nsp"}},
    "sop": {"model": BERT, "objective": {"pairs": "sop"}},
    "spans": {"model": T5},
    "prefix": {"model": T5, "objective": {"name": "prefix_lm"}},
}
STEPS = 3


def case_on(corpus: str, case: dict, **engine) -> dict:
    data = {"datasets": [{"path": corpus}], "row_length": 32, "prefetch_steps": 0, **case.get("data", {})}
    return {**case, "data": data, "engine": {"ds_config": "zero0", **engine}}


def assert_close(curve, expected, what: str) -> None:
    for (parts, norm), (other_parts, other_norm) in zip(curve, expected, strict=True):
        assert parts == pytest.approx(other_parts, abs=1e-5), f"{what}: {parts} and {other_parts}"
        # DeepSpeed sums the squares of all gradients in one fp32 pass: off by 1e-4 of it for a vocabulary of this size.
        assert norm == pytest.approx(other_norm, rel=3e-4), f"{what}: gradient norms {norm} and {other_norm}"


@pytest.mark.slow
def test_every_objective_trains_on_two_ranks_as_on_one(corpus):
    one = run_ranks(1, train_objectives, [case_on(corpus, case) for case in CASES.values()], STEPS)[0]
    two = run_ranks(2, train_objectives, [case_on(corpus, case, ds_config="zero2") for case in CASES.values()], STEPS)
    for name, expected, *ranks in zip(CASES, one, *two, strict=True):
        for curve in ranks:
            assert_close(curve, expected, name)
        parts = {"nsp": {"mlm", "pairs"}, "sop": {"mlm", "pairs"}, "mlm": {"mlm"}}.get(name.split(",")[0], {"lm"})
        assert all(set(found) == parts for found, _ in expected)
        chance = sum({"lm": math.log(VOCAB_SIZE), "mlm": math.log(VOCAB_SIZE), "pairs": math.log(2)}[p] for p in parts)
        assert sum(expected[0][0].values()) == pytest.approx(chance, rel=0.1), f"{name} does not start at chance"


TOKENS = {"vocab_size": 384}
LABELLED = {
    "classification": ({**BERT, **TOKENS}, {"labels": ["cat", "dog"], "class_weights": [1, 3]}),
    "regression": (TOKENS, {"mean": 4, "scale": 2.3}),
    "token_classification": ({**MODERN, **TOKENS}, {"labels": ["O", "B-A", "I-A", "B-B", "I-B"]}),
    "relation": ({**BERT, **TOKENS}, {"labels": ["subject", "object"]}),
    "seq2seq": ({**T5, **TOKENS}, {"target_length": 48}),
    "instruction": (TOKENS, {}),
}


@pytest.mark.slow
def test_labelled_objectives_learn_at_every_stage_as_on_one_rank(tmp_path):
    """Each at two of the stages, so that each stage has three of them."""
    byte_tokenizer().save(tmp_path / "tokenizer.json")
    made = {"tokenizer": str(tmp_path / "tokenizer.json")}
    cases = []
    for name, (model, settings) in LABELLED.items():
        path = str(write_examples(tmp_path / f"{name}.jsonl", name, count=20))
        data = {"datasets": [], "examples": {"train": path, "valid": path, **made}, "row_length": 160}
        dropout = {} if name in ("seq2seq", "instruction") else {"head_dropout": 0}
        run = {"folder": str(tmp_path / "runs")}
        model = {**model, "max_positions": 160}
        cases.append({"run": run, "data": data, "model": model, "objective": {"name": name, **settings, **dropout}})
    one = run_ranks(1, train_objectives, [{**case, "engine": {"ds_config": "zero0"}} for case in cases], STEPS)[0]
    staged = [(number, f"zero{stage}") for number in range(len(cases)) for stage in (number % 2, number % 2 + 2)]
    engines = [{**cases[number], "engine": {"ds_config": stage}} for number, stage in staged]
    for curves in run_ranks(2, train_objectives, engines, STEPS):
        for (number, stage), curve in zip(staged, curves, strict=True):
            assert_close(curve, one[number], f"{list(LABELLED)[number]}, {stage}")


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["sequence_parallel", "tensor_parallel"])
def test_bert_on_shared_rows_and_slices_learns_as_on_one_process(corpus, shared):
    bert = {**BERT, "preset": "bert", "qk_norm": True}
    cases = [
        {"model": model, "data": {"document_masking": masking}} for model, masking in ((bert, False), (MODERN, True))
    ]
    one = run_ranks(1, train_objectives, [case_on(corpus, case) for case in cases], STEPS)[0]
    two = run_ranks(
        2, train_objectives, [case_on(corpus, case, ds_config="zero3", **{shared: 2}) for case in cases], STEPS
    )
    for case, expected, *ranks in zip(cases, one, *two, strict=True):
        for curve in ranks:
            assert_close(curve, expected, f"{case}")


@pytest.mark.slow
def test_contrastive_training_at_every_stage_follows_plain_torch(corpus, tmp_path):
    """Two ranks at each ZeRO stage against one fp32 process that holds all rows at once; the temperature is learned,
    sharded, saved and continued."""
    objective = {"name": "contrastive", "learnable_temperature": True}
    batch = {"global_batch_size": 8, "micro_batch_size": 4}
    base = {"model": GPT, "objective": objective, "batch": batch}
    stages = ["zero0", "zero1", "zero2", "zero3"]
    cases = [case_on(corpus, base, ds_config=stage) for stage in stages]
    ranks = run_ranks(2, train_temperature, str(tmp_path), cases, 2)

    config = tiny_config(**case_on(corpus, {**base, "batch": {"global_batch_size": 8, "micro_batch_size": 8}}))
    assert isinstance(config.objective, Contrastive)
    reference = Reference(config)
    stream = make_stream(config, type("World", (), {"rank": 0, "size": 1}))
    expected = [reference.step(index, stream.step(index * 8)[0]) for index in range(4)]
    temperature = torch.exp(-reference.model.temperature.log_scale).item()
    assert abs(temperature - 0.05) > 1e-3, "the temperature did not move"
    for results in ranks:
        for stage, (first, second, found) in zip(stages, results, strict=True):
            curve = [(parts["contrastive"], norm) for parts, norm in [*first, *second]]
            for actual, wanted in zip(curve, expected, strict=True):
                assert actual == pytest.approx(wanted, rel=1e-4, abs=1e-4), f"{stage}: {curve} and {expected}"
            assert found == pytest.approx(temperature, abs=1e-5), stage
