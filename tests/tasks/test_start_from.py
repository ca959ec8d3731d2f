"""Fine-tuning starts from the models that transformers saves: what ours computes is what theirs does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from config import CheckpointError, ConfigError
from data.tokenizer import Tokenizer
from data.training import open_training
from engine.runs import run_documents
from engine.start_from import Source, check_settings, match, report
from tests.tasks.hugging_face import BERT, GPT2, LLAMA, MODERNBERT, SIZES, T5, edit, save
from tests.tasks.starting import started, write_recipe
from tests.tiny import tiny_config

KV = dict(num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2)
MODELS: dict[str, tuple[Any, Any, str]] = {
    "bert": (transformers.BertModel, BERT, "classification"),
    "bert-mlm": (transformers.BertForMaskedLM, BERT, "relation"),
    "bert-classifier": (transformers.BertForSequenceClassification, BERT, "regression"),
    "modernbert": (transformers.ModernBertModel, MODERNBERT, "token_classification"),
    "modernbert-mlm": (transformers.ModernBertForMaskedLM, MODERNBERT, "pair"),
    "gpt2": (transformers.GPT2LMHeadModel, GPT2, "instruction"),
    "gpt2-base": (transformers.GPT2Model, GPT2, "classification"),
    "llama": (transformers.LlamaForCausalLM, LLAMA, "instruction"),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config(**SIZES, **KV, head_dim=8), "classification"),
    "mistral": (
        transformers.MistralForCausalLM,
        transformers.MistralConfig(**SIZES, **KV, head_dim=8, sliding_window=16),
        "classification",
    ),
    "t5": (transformers.T5ForConditionalGeneration, T5, "seq2seq"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers_starts_a_run(tmp_path, name):
    make, settings, kind = MODELS[name]
    folder = tmp_path / "model"
    theirs = save(folder, make, settings)
    config = write_recipe(folder, kind, tmp_path)
    model, said = started(folder, config)
    open_training(config, 0, 1)[0].step(0)
    torch.manual_seed(1)
    tokens_BT, others_BT = torch.randint(0, 256, (2, 2, 24))
    body = getattr(theirs, theirs.base_model_prefix, theirs)
    with torch.no_grad():
        if config.model.family == "t5":
            expected = theirs(input_ids=tokens_BT, decoder_input_ids=others_BT).logits
            actual = model.logits(model(tokens_BT, others_BT))
        else:
            expected, actual = body(tokens_BT).last_hidden_state, model(tokens_BT)
    assert (actual - expected).abs().max() <= 1e-5, said


def test_the_weights_may_lie_in_several_files(tmp_path):
    folder = tmp_path / "model"
    theirs = save(folder, transformers.BertModel, BERT)
    (folder / "model.safetensors").unlink()
    theirs.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2 and not (folder / "model.safetensors").exists()
    model, _ = started(folder, write_recipe(folder, "classification", tmp_path))
    torch.testing.assert_close(model.embed_tokens.weight, theirs.embeddings.word_embeddings.weight)


def test_pickled_weights_are_refused(tmp_path):
    folder = tmp_path / "model"
    theirs = save(folder, transformers.BertModel, BERT)
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing; .*pytorch_model\.bin .*save_pretrained"):
        write_recipe(folder, "classification", tmp_path)


def test_unknown_architectures_are_named_with_the_known_ones(tmp_path):
    folder = tmp_path / "model"
    save(folder, transformers.BertModel, BERT)
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**facts, "model_type": "roberta", "architectures": ["RobertaModel"]})
    )
    with pytest.raises(ConfigError) as refused:
        write_recipe(folder, "classification", tmp_path)
    assert all(name in str(refused.value) for name in ("roberta", "bert", "modernbert", "gpt2", "llama", "qwen3", "t5"))


def test_a_model_of_another_family_is_refused(tmp_path):
    folder = tmp_path / "model"
    save(folder, transformers.GPT2LMHeadModel, GPT2)
    with pytest.raises(ConfigError, match="is a model of family gpt, and relation is for family bert"):
        write_recipe(folder, "relation", tmp_path)


def test_markers_of_entities_get_rows_of_their_own(tmp_path):
    """The table has no room for them: the old rows stay, the new ones are drawn as an untrained model's are."""
    folder = tmp_path / "model"
    small = transformers.BertConfig(**{**BERT.to_dict(), "vocab_size": 261, "initializer_range": 0.02})
    save(folder, transformers.BertModel, small)
    config = write_recipe(folder, "relation", tmp_path)
    assert config.model.vocab_size == 265
    model, said = started(folder, config)
    assert "new rows: embed_tokens.weight 261 → 265" in said
    theirs = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(model.embed_tokens.weight[:261], theirs)
    new = model.embed_tokens.weight[261:]
    assert new.std().item() == pytest.approx(0.02, rel=0.2) and len(new.unique(dim=0)) == 4


def test_conversations_are_read_by_the_model_s_own_template(tmp_path):
    folder = tmp_path / "model"
    save(folder, transformers.LlamaForCausalLM, LLAMA)
    template = "{{ bos_token }}{% for m in messages %}<{{ m.role[0] }}>{{ m.content }};{% endfor %}"
    template += "{% if add_generation_prompt %}<a>{% endif %}"
    edit(folder / "tokenizer_config.json", chat_template=template, bos_token="[CLS]")
    config = write_recipe(folder, "conversation", tmp_path, "objective.packing=false", "data.shuffle=none")
    assert config.data.examples.messages == "messages" and config.data.examples.chat_template.endswith(template)
    stream, tokenizer = open_training(config, 0, 1)
    batch = stream.step(0)[0][0]
    learned = batch.labels_BT[0][batch.labels_BT[0] >= 0]
    assert tokenizer.decode(batch.tokens_BT[0]).startswith("[CLS]<u>the;<a>the the;<u>the;<a>the the")
    assert batch.tokens_BT[0, 0] == tokenizer.ids_of(["[CLS]"])[0] and tokenizer.decode(learned) == "the the;the the;"


def test_a_run_keeps_what_ends_a_text_in_the_model_it_starts_from(tmp_path):
    folder = tmp_path / "model"
    save(folder, transformers.LlamaForCausalLM, LLAMA)
    edit(folder / "tokenizer_config.json", eos_token="[SEP]")
    config = write_recipe(folder, "instruction", tmp_path)
    _, tokenizer = open_training(config, 0, 1)
    for name, text in run_documents(config, tokenizer).items():
        (tmp_path / name).write_text(text)
    assert Tokenizer.load(tmp_path / "tokenizer.json").eod_id == tokenizer.eod_id == tokenizer.ids_of(["[SEP]"])[0]


def test_a_size_that_is_left_out_is_the_one_written_out():
    def t5(**settings: int) -> Any:
        return tiny_config(model={"family": "t5", "num_kv_heads": None, **settings}).model

    source = Source(Path("run"), t5(num_decoder_layers=2, ffn_size=128, head_size=8), {}, lambda *_: torch.empty(0))
    check_settings(source, t5())
    with pytest.raises(ConfigError, match=r"model\.num_decoder_layers is 1, the source's 2"):
        check_settings(source, t5(num_decoder_layers=1))


def test_a_head_for_other_labels_begins_anew():
    """Its layers before the labels are kept, and nothing else may have another shape."""
    shapes = {"norm.weight": (8,), "lm_head.dense.weight": (8, 8), "lm_head.output.weight": (2, 8)}
    source = Source(Path("run"), tiny_config().model, shapes, lambda name, start, stop: torch.zeros(stop - start))
    wanted = {name: list(shape) for name, shape in shapes.items()} | {"lm_head.output.weight": [3, 8]}
    names = match(source, wanted)
    assert list(names) == ["norm.weight", "lm_head.dense.weight"]
    assert report(source, wanted, names).endswith("; new: lm_head.output.weight; not used: lm_head.output.weight")
    with pytest.raises(ConfigError, match=r"lm_head.dense.weight is \[8, 8\] there, \[9, 8\] here"):
        match(source, wanted | {"lm_head.dense.weight": [9, 8]})
