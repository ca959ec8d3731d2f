"""What a changed recipe means for a run that continues."""

import pytest

from config import RunConfig, compare, load_recipe
from config.fields import all_settings, sections_in
from tests.tiny import tiny_config


def differences(*overrides: str, before: tuple[str, ...] = ()):
    return compare(load_recipe("gpt_debug", before), load_recipe("gpt_debug", [*before, *overrides]))


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("model.num_layers=3", "refused"),
        ("model.vocab_size=9000", "refused"),
        ("model.rope_theta=5e5", "refused"),
        ("model.ffn_size=64", "refused"),
        ("data.row_length=32", "refused"),
        ("optimizer.name=sgd", "refused"),
        ("run.seed=1", "needs_consent"),
        ("data.datasets=[{path: other}]", "needs_consent"),
        ("data.mixture_schedule=[{from_tokens: 9, weights: [1]}]", "needs_consent"),
        ("data.document_masking=true", "needs_consent"),
        ("batch.global_batch_size=16", "needs_consent"),
        ("optimizer.lr=1e-2", "needs_consent"),
        ("schedule.name=linear", "needs_consent"),
        ("schedule.steps=40", "needs_consent"),
        ("engine.precision=fp32", "needs_consent"),
        ("model.dropout=0.1", "needs_consent"),
        ("model.init_std=0.1", "harmless"),
        ("batch.micro_batch_size=2", "harmless"),
        ("data.prefetch_steps=0", "harmless"),
        ("engine.ds_config=zero3", "harmless"),
        ("engine.kernel=sdpa", "harmless"),
        ("engine.compile=on", "harmless"),
        ("checkpoint.keep_last=1", "harmless"),
        ("monitor.wandb=true", "harmless"),
        ("monitor.profile_steps=[3]", "harmless"),
        ("validation.rows=4", "harmless"),
        ("run.name=other", "harmless"),
    ],
)
def test_kind_of_a_change(override, kind):
    (difference,) = differences(override)
    assert (difference.setting, difference.kind) == (override.partition("=")[0], kind)
    assert str(difference) == f"{difference.setting}: {difference.old} → {difference.new} ({difference.why})"


def test_more_steps_are_harmless_where_the_rate_does_not_depend_on_them():
    assert [d.kind for d in differences("schedule.steps=40", before=("schedule.name=constant",))] == ["harmless"]
    assert [d.kind for d in differences("schedule.steps=40", before=("schedule.name=wsd",))] == ["needs_consent"]


def test_another_micro_batch_gives_contrastive_rows_other_negatives():
    (difference,) = differences("batch.micro_batch_size=2", before=("objective.name=contrastive",))
    assert difference.kind == "needs_consent"


def test_other_held_out_examples_change_nothing_that_is_learned():
    def kinds(**examples: str) -> dict[str, str]:
        files = {"train": "a.jsonl", "valid": "b.jsonl", "tokenizer": "t.json"}
        one, other = (
            tiny_config(data={"datasets": (), "examples": {**files, **new}}, objective={"name": "instruction"})
            for new in ({}, examples)
        )
        return {difference.setting: difference.kind for difference in compare(one, other)}

    assert kinds(valid="c.jsonl") == {"data.examples.valid": "harmless"}
    assert kinds(label="answer") == {"data.examples.label": "needs_consent"}


def test_writing_out_a_size_that_was_a_default_is_no_change():
    assert not differences("model.ffn_size=192", "model.head_size=16")
    assert not differences()


def test_every_setting_was_judged():
    """A new setting has to be added to the table; the fallback is for nobody."""
    from config.changes import RULES

    names = [str(s) for s in all_settings(RunConfig) if len(s.path) > 1 and not sections_in(s.field.annotation)]
    assert [name for name in names if not any(name.startswith(start) for start, _, _ in RULES)] == []
