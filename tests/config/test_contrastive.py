"""What contrastive objectives ask of a recipe, and what each mistake says."""

import pytest
from pydantic import ValidationError

from config import ConfigError
from config.changes import compare
from config.derive import derive
from config.objective_schema import row_shape
from tests.tiny import tiny_config

PAIRS = {"train": "a.jsonl", "valid": "b.jsonl", "tokenizer": "t.json"}
NAME = {"name": "contrastive_pairs"}


def pairs_config(**sections):
    base = {"data": {"datasets": (), "pairs": PAIRS}, "objective": NAME}
    return tiny_config(**{name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}})


WRONG = [
    ({"data": {"datasets": [{"path": "x"}]}}, "data.pairs is what objective.name contrastive_pairs learns from: give it, and leave data.datasets out"),
    ({"objective": {"name": "causal_lm"}}, "data.datasets is what objective.name causal_lm learns from: give it, and leave data.pairs out"),
    ({"data": {"pairs": None}}, "data.pairs is what objective.name contrastive_pairs learns from: give it"),
    ({"data": {"pairs": {**PAIRS, "tokenizer": ""}}}, "data.pairs.tokenizer is needed"),
    ({"data": {"pairs": {**PAIRS, "valid": ""}}}, "data.pairs.valid is needed to validate: give a file, or set validation.every_steps to 0"),
    ({"objective": {**NAME, "dimensions": [16, 64]}}, "objective.dimensions has 64, but vectors are model.hidden_size 32"),
    ({"objective": {**NAME, "dimensions": [16, 16]}}, "dimensions 16, 16 name a width twice"),
    ({"objective": {**NAME, "dimensions": [16], "dimension_weights": [1, 2]}}, "has 2 weights for 1 dimensions"),
    ({"objective": {**NAME, "dimension_weights": [1.0]}}, "has 1 weights for 0 dimensions"),
    ({"objective": {**NAME, "min_crop": 0.1}}, "min_crop"),
    ({"objective": {**NAME, "pooling": "cls"}}, "objective.pooling cls is the first token's state"),
    ({"engine": {"tensor_parallel": 2}}, "engine.tensor_parallel 2 does not work with objective.name contrastive_pairs"),
    ({"engine": {"sequence_parallel": 2}}, "engine.sequence_parallel 2 does not work with objective.name contrastive_pairs"),
    ({"data": {"document_masking": True}}, "objective contrastive_pairs packs none"),
    ({"data": {"mixture_schedule": [{"from_tokens": 9, "weights": [1.0]}]}}, "1 weights for 0 datasets"),
]  # fmt: skip


@pytest.mark.parametrize(("sections", "message"), WRONG, ids=[message[:45] for _, message in WRONG])
def test_what_cannot_work_is_refused(sections, message):
    with pytest.raises(ValidationError, match=message):
        pairs_config(**sections)


def test_a_recipe_without_held_out_pairs_needs_no_validation():
    config = pairs_config(data={"pairs": {**PAIRS, "valid": ""}}, validation={"every_steps": 0})
    assert config.data.pairs.train == "a.jsonl"


def test_hard_negatives_are_rows_that_cost_memory_and_time():
    two, four = (pairs_config(objective={**NAME, "hard_negatives": k}) for k in (0, 2))
    assert [row_shape(c.objective, 16).rows for c in (two, four)] == [2, 4]
    flops = [derive(c, 1).flops_per_token * derive(c, 1).tokens_per_row for c in (two, four)]
    assert flops[1] == pytest.approx(2 * flops[0], rel=1e-3)


def test_an_anchor_without_any_negative_is_refused():
    alone = {"batch": {"global_batch_size": 4, "micro_batch_size": 1}}
    with pytest.raises(ConfigError, match="one row in a micro_batch of all ranks leaves its anchor no negative"):
        derive(pairs_config(**alone), 1)
    derive(pairs_config(**alone), 2)
    derive(pairs_config(**alone, objective={**NAME, "hard_negatives": 1}), 1)
    derive(pairs_config(**alone, objective={**NAME, "negatives_from": "global_batch"}), 1)


@pytest.mark.parametrize(("negatives_from", "kind"), [("micro_batch", "needs_consent"), ("global_batch", "harmless")])
def test_another_micro_batch_matters_only_where_it_makes_the_negatives(negatives_from, kind):
    objective = {**NAME, "negatives_from": negatives_from}
    old, new = (pairs_config(objective=objective, batch={"micro_batch_size": size}) for size in (2, 4))
    assert [(d.setting, d.kind) for d in compare(old, new)] == [("batch.micro_batch_size", kind)]
