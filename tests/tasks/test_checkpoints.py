"""Models from Hugging Face folders: with and without heads, with a pooling, and what is refused."""

import json

import pytest
import torch
import transformers

from config import CheckpointError, ConfigError
from tasks.checkpoints import check_family, load_model
from tests.model.tiny import random_tokens
from tests.tasks.hugging_face import BERT, GPT2, LLAMA, SIZES, edit, save

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "make, config, objective",
    [
        (transformers.BertModel, BERT, "contrastive"),
        (lambda config: transformers.BertModel(config, add_pooling_layer=False), BERT, "contrastive"),
        (transformers.BertForMaskedLM, BERT, "masked_lm"),
        (transformers.BertForPreTraining, BERT, "masked_lm"),
        (transformers.BertForSequenceClassification, BERT, "classification"),
        (transformers.GPT2Model, GPT2, "causal_lm"),  # its head is the embedding
        (transformers.LlamaModel, LLAMA, "contrastive"),
        (transformers.LlamaForCausalLM, LLAMA, "causal_lm"),
    ],
    ids=["bert", "no pooler", "masked", "pretraining", "classifier", "gpt2", "llama", "causal"],
)
def test_the_backbone_of_any_head_is_loaded(make, config, objective, tmp_path):
    theirs = save(tmp_path, make, config)
    trained = load_model(tmp_path, CPU)
    assert trained.objective.name == objective and trained.recipe is None
    tokens_BT = random_tokens(trained.config)
    with torch.no_grad():
        expected_BTD = theirs.base_model(tokens_BT).last_hidden_state
        assert (trained.model(tokens_BT) - expected_BTD).abs().max() <= 1e-5
    assert all(torch.isfinite(weight).all() for weight in trained.model.parameters())


def test_weights_of_a_checkpoint_with_more_heads_than_its_class_says(tmp_path):
    """As in the first published BERT."""
    theirs = save(tmp_path, transformers.BertForPreTraining, BERT)
    edit(tmp_path / "config.json", architectures=["BertForMaskedLM"])
    trained = load_model(tmp_path, CPU)
    tokens_BT = random_tokens(trained.config)
    with torch.no_grad():
        logits_BTV = trained.model.logits(trained.model(tokens_BT))
        assert (logits_BTV - theirs(tokens_BT).prediction_logits).abs().max() <= 1e-4


def test_a_missing_block_is_not_taken_for_a_missing_head(tmp_path):
    save(tmp_path, transformers.BertModel, BERT)
    edit(tmp_path / "config.json", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"blocks\.2\..* is missing"):
        load_model(tmp_path, CPU)


def test_the_tokenizer_is_the_folders(tmp_path):
    save(tmp_path, transformers.BertModel, BERT)
    tokenizer = load_model(tmp_path, CPU).tokenizer
    begin, end = tokenizer.frame
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [*begin, *tokenizer.encode("A naïve text"), *end] == theirs("A naïve text")["input_ids"]
    assert tokenizer.eod_token == "[SEP]"
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing; write it with transformers: AutoTokenizer"):
        load_model(tmp_path, CPU)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    save(tmp_path, transformers.BertModel, transformers.BertConfig(**{**SIZES, "vocab_size": 256}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has 261 tokens, the model's table 256 rows"):
        load_model(tmp_path, CPU)


@pytest.mark.parametrize(
    "settings, pooling",
    [
        ({"pooling_mode": "lasttoken", "include_prompt": True}, "last"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": ["cls", "mean"]}, "pooling cls and mean is not supported, only one of cls, mean, lasttoken"),
        ({"pooling_mode_max_tokens": True}, "pooling max is not supported"),
    ],
)
def test_the_pooling_of_a_sentence_transformers_folder(settings, pooling, tmp_path):
    save(tmp_path, transformers.BertModel, BERT)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds.items()]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(settings))
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 48}')
    if "supported" in pooling:
        with pytest.raises(ConfigError, match=pooling):
            load_model(tmp_path, CPU)
        return
    trained = load_model(tmp_path, CPU)
    assert trained.layout.pooling == trained.objective.pooling == pooling and trained.max_tokens == 48
    (tmp_path / "modules.json").write_text(json.dumps([*modules, {"path": "3_CNN", "type": "x.CNN"}]))
    with pytest.raises(ConfigError, match="a CNN in 3_CNN is not supported"):
        load_model(tmp_path, CPU)
    (tmp_path / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}')
    with pytest.raises(ConfigError, match=r"a default prompt \(query\) is not supported: put it before the texts"):
        load_model(tmp_path, CPU)


def test_wrong_folders_are_one_message(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder; a model is a local folder"):
        load_model(tmp_path / "bert-base-uncased", CPU)
    with pytest.raises(CheckpointError, match=r"no intact checkpoint here; .* or a Hugging Face folder"):
        load_model(tmp_path, CPU)
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(ConfigError, match="model_type 'whisper' is not one of gpt2"):
        load_model(tmp_path, CPU)


def test_a_model_of_the_wrong_family(tmp_path):
    save(tmp_path, transformers.BertModel, BERT)
    with pytest.raises(ConfigError, match="generate needs a model of family gpt or t5, but this one is of family bert"):
        check_family(load_model(tmp_path, CPU), "generate", ("gpt", "t5"))
