"""The objective's section: defaults by family, what is refused, and how much text a row takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import ConfigError, compare, derive, load_recipe
from config.count import head_flops
from config.objective_schema import CausalLM, Contrastive, MaskedLM, PrefixLM, SpanCorruption, row_shape


def debug(*overrides: str):
    return load_recipe("gpt_debug", overrides)


def test_a_gpt_predicts_the_next_token_unless_told_otherwise():
    assert debug().objective == CausalLM()
    assert debug("objective.fim_rate=0.5").objective == CausalLM(fim_rate=0.5)
    assert debug("objective.name=contrastive").objective == Contrastive()


def test_other_families_have_other_defaults():
    assert debug("model.family=bert", "model.preset=bert").objective == MaskedLM()
    assert not debug("model.family=bert", "model.preset=bert").model.pooler
    assert debug(*BERT, "objective.pairs=sop").model.pooler
    t5 = debug("model.family=t5", "model.preset=t5_v1_1")
    assert t5.objective == SpanCorruption()
    assert debug("model.family=t5", "model.preset=t5_v1_1", "objective.noise_density=0.3").objective == SpanCorruption(
        noise_density=0.3
    )


BERT, T5 = ["model.family=bert", "model.preset=modernbert"], ["model.family=t5", "model.preset=t5_v1_1"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*BERT, "objective.pairs=nsp", "model.pooler=false"],
            "model.pooler false does not go with objective.pairs nsp",
        ),
        ([*BERT, "model.pooler=true"], "model.pooler true does not go with objective.pairs none"),
        ([*BERT, "objective.pairs=nsp", "data.document_masking=true"], "objective masked_lm with pairs nsp packs none"),
        ([*T5, "objective.noise_density=0.9", "objective.mean_span_length=30"], "more than model.max_positions"),
        ([*T5, "data.document_masking=true"], "objective span_corruption packs none that could be separated"),
        (["objective.name=masked_lm"], "objective.name masked_lm is not for model.family gpt: set it to causal_lm or"),
        (
            ["objective.name=span_corrupt"],
            "expected causal_lm, masked_lm, span_corruption, prefix_lm, contrastive",
        ),
        (["objective.fim_rat=1"], "unknown setting; did you mean fim_rate"),
        (["objective.mask_rate=0.3"], "unknown setting here; mask_rate belongs to objective masked_lm"),
        (["model.local_window=3"], "unknown setting here; local_window belongs to model bert"),
        ([*BERT, "model.global_every=1"], "local_window 64 has no effect with global_every 1"),
        (["model.tied_embeddings=true", "optimizer.head_lr_ratio=2"], "optimizer.head_lr_ratio 2 has no effect: under"),
        (["objective.fim_rate=2"], "objective.fim_rate=2: must be at most 1, not 2"),
        (["objective.name=contrastive", "data.document_masking=true"], "data.document_masking separates documents"),
        (["objective.name=contrastive", "objective.pooling=cls"], "under model.family gpt has seen nothing else"),
        (["objective.name=contrastive", "objective.min_crop=0.6"], "min_crop 0.6 is more than max_crop 0.5"),
        (["objective.name=contrastive", "data.row_length=2"], "row_length 2 leaves room for 0 tokens"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(overrides, message):
    with pytest.raises(ConfigError) as error:
        debug(*overrides)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("command line: ")


def test_mask_and_random_shares_cannot_exceed_one():
    with pytest.raises(ValueError, match=r"mask_share 0.8 and random_share 0.3 add up to 1.1"):
        MaskedLM(random_share=0.3)


def test_a_changed_objective_needs_consent_and_a_new_parameter_is_refused():
    learnable = ["objective.name=contrastive", "objective.learnable_temperature=true"]
    changed = {d.setting: d.kind for d in compare(debug(), debug("objective.fim_rate=0.5"))}
    assert changed == {"objective.fim_rate": "needs_consent"}
    changed = {d.setting: d.kind for d in compare(debug(), debug("objective.name=contrastive"))}
    assert set(changed.values()) == {"needs_consent"}
    changed = {d.setting: d.kind for d in compare(debug(), debug(*learnable))}
    assert changed["objective.learnable_temperature"] == "refused"


def test_published_lengths_of_span_corruption():
    """T5: rows of 512 tokens hold 568 tokens of text, and their spans fill 114 (arXiv:1910.10683's released inputs)."""
    shape = row_shape(SpanCorruption(), 512)
    assert (shape.text, shape.length, shape.decoder) == (568, 512, 114)


@given(
    row_length=st.integers(1, 3000), density=st.floats(0.001, 0.999), mean=st.floats(1, 50), margin=st.integers(1, 40)
)
def test_corrupted_rows_are_exactly_full(row_length, density, mean, margin):
    try:
        shape = row_shape(SpanCorruption(noise_density=density, mean_span_length=mean), row_length)
    except ValueError as error:
        assert "data.row_length" in str(error) or "objective.noise_density" in str(error)
        return
    assert shape.length == row_length == shape.text - shape.noise + shape.spans + 1
    assert shape.decoder == shape.noise + shape.spans + 1
    assert 1 <= shape.spans <= min(shape.noise, shape.text - shape.noise, 100)
    assert abs(shape.noise - shape.text * density) <= 1


@pytest.mark.parametrize(
    ("objective", "text", "rows"),
    [
        (CausalLM(), 64, 1),
        (PrefixLM(), 64, 1),
        (MaskedLM(), 62, 1),
        (MaskedLM(pairs="nsp"), 61, 1),
        (Contrastive(max_crop=0.25), 248, 2),
    ],
)
def test_text_of_a_row(objective, text, rows):
    shape = row_shape(objective, 64)
    assert (shape.text, shape.length, shape.rows) == (text, 64, rows)


def test_the_plan_counts_text_and_the_flops_spent_on_it():
    plain, crops = derive(debug(), 1), derive(debug("objective.name=contrastive"), 1)
    row = debug().data.row_length
    assert plain.tokens_per_step == debug().batch.global_batch_size * row
    assert crops.tokens_per_step == debug().batch.global_batch_size * 2 * (row - 2)
    blocks = plain.flops_per_token * row - head_flops(debug().model, row)
    assert crops.flops_per_token == 2 * blocks // (2 * (row - 2))
