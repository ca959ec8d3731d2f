"""Heads of labels and numbers against transformers' classes, in both directions."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

import model
from config import ConfigError
from config.count import count_parameters
from config.supervised_schema import Classification, Regression, Relation, TokenClassification
from model.hf import architecture
from tests.model.tiny import assert_close, random_tokens, tiny_config, tiny_model

PRESETS = ("bert", "modernbert", "gpt2", "llama", "mistral", "qwen3")
OBJECTIVES = {
    "labels": Classification(labels=("no", "yes", "perhaps")),
    "a number": Regression(mean=0.0, scale=3.0),
    "tokens": TokenClassification(labels=("O", "B-X", "I-X")),
}


def headed(preset: str, objective):
    """A random model with the head of an objective, biases and all, in which absent padding is token 0."""
    config = tiny_config(preset)
    ours = tiny_model(config)
    model.set_task_head(ours, objective)
    with torch.no_grad():
        for name, parameter in ours.lm_head.named_parameters():
            parameter.copy_(model.initial_weight(name, parameter.shape, config, seed=3))
            if name.endswith((".bias", "norm.weight")):
                parameter += 0.1 * torch.arange(len(parameter))
    return ours.eval()


def scores(ours, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Of each token, or of the first or last one."""
    hidden_BTD = ours(tokens_BT)
    if not isinstance(ours.lm_head.objective, TokenClassification):
        hidden_BTD = hidden_BTD[:, 0 if ours.config.family == "bert" else -1]
    return ours.lm_head(hidden_BTD)


@torch.no_grad()
@pytest.mark.parametrize("task", OBJECTIVES)
@pytest.mark.parametrize("preset", PRESETS)
def test_transformers_computes_the_same_and_it_is_read_back(preset, task, tmp_path):
    objective = OBJECTIVES[task]
    ours = headed(preset, objective)
    tokens_BT = random_tokens(ours.config).clamp(min=1)
    expected = scores(ours, tokens_BT)
    counted = count_parameters(ours.config, objective)
    assert sum(p.numel() for p in ours.lm_head.parameters()) == counted.head
    ours.lm_head.absorb_scale()
    assert_close(scores(ours, tokens_BT), expected, "scores after absorbing the scale")
    objective = ours.lm_head.objective

    model.save_hf(tmp_path, ours.config, ours.state_dict(), token_ids={"pad_token_id": 0}, objective=objective)
    auto = getattr(transformers, architecture(ours.config, objective).auto_class)
    theirs, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_close(theirs.eval()(tokens_BT).logits, expected, "transformers' scores")
    if task != "a number":
        assert tuple(theirs.config.id2label.values()) == objective.labels

    theirs.save_pretrained(tmp_path / "theirs")
    found = model.load_hf_objective(tmp_path / "theirs")
    if preset in ("bert", "modernbert"):
        assert found == objective
    assert found.model_copy(update={"head_dropout": 0.1}) == objective
    state = model.load_hf(tmp_path / "theirs", objective=found)[1]
    assert {name for name in state if name.startswith("lm_head.")} == {
        name for name in ours.state_dict() if name.startswith("lm_head.")
    }
    assert all(torch.equal(state[name], weight) for name, weight in ours.state_dict().items())


def test_a_mean_goes_into_the_bias():
    objective = Regression(mean=-7.0, scale=3.0)
    ours = headed("bert", objective)
    tokens_BT = random_tokens(ours.config)
    with torch.no_grad():
        before = scores(ours, tokens_BT)
        ours.lm_head.absorb_scale()
        assert ours.lm_head.objective.mean == 0.0
        assert_close(scores(ours, tokens_BT), before, "numbers")


@pytest.mark.parametrize(
    "preset, objective, message",
    [
        ("bert", Relation(labels=("a", "b")), "relation has no equivalent .* reads a label at a marker"),
        ("llama", Regression(mean=2.5), r"objective\.mean 2\.5 has no equivalent .* head of a text has no bias"),
    ],
)
def test_a_head_that_transformers_has_not_is_refused(preset, objective, message):
    with pytest.raises(ConfigError, match=message):
        architecture(tiny_config(preset), objective)


@pytest.mark.parametrize(
    "changes",
    [
        {"problem_type": "multi_label_classification"},
        {"classifier_pooling": "mean"},
        {"architectures": ["ModernBertForQuestionAnswering"]},
        {"id2label": {"0": "a", "1": "a", "2": "b"}},
    ],
)
def test_a_head_that_computes_something_else_is_passed_over(changes, tmp_path):
    ours = headed("modernbert", OBJECTIVES["labels"])
    model.save_hf(tmp_path, ours.config, ours.state_dict(), objective=OBJECTIVES["labels"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert model.load_hf_objective(tmp_path) is None
    _, state = model.load_hf(tmp_path, need_heads=False)
    assert not any(name.startswith("lm_head.") for name in state)
    assert "classifier.weight" in load_file(tmp_path / "model.safetensors")
