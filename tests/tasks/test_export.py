"""`python -m tasks export`: folders that transformers reads as what was trained, or none at all."""

import json
import sys
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing

import model.convert
import tasks.checkpoints
import tasks.export.tokenizer
from config import CheckpointError, ConfigError
from config.objective_schema import CausalLM, MaskedLM, SpanCorruption
from data.prompt import encode_prompt
from data.specials import BERT, T5
from data.tokenizer import Tokenizer, byte_alphabet, byte_level_bpe, byte_tokenizer, with_end_token
from model.hf import architecture
from tasks.checkpoints import Trained
from tasks.export.folder import export
from tests.conftest import task, train
from tests.model.tiny import tiny_config, tiny_model, tiny_t5
from tests.tasks.framed import framed_bytes
from tests.tasks.trained import save_folder, tiny_trained

CONFIGS = {
    "gpt2": tiny_config("gpt2", vocab_size=320),
    "llama": tiny_config("llama", vocab_size=320),
    "mistral": tiny_config("mistral", vocab_size=320, sliding_window=9),
    "qwen3": tiny_config("qwen3", vocab_size=320, tied_embeddings=True),
    "bert": tiny_config("bert", vocab_size=320),
    "modernbert": tiny_config("modernbert", vocab_size=320, num_layers=4, local_window=5, max_positions=256),
    # As many blocks in both stacks: transformers 5 sizes the cache of its decoder by its encoder.
    "t5": tiny_t5(vocab_size=384, num_decoder_layers=2),
}
OBJECTIVES = {"gpt": CausalLM(), "bert": MaskedLM(), "t5": SpanCorruption()}
SPECIALS = {"t5": T5}


@pytest.fixture
def trained(monkeypatch):
    """Makes a random tiny model the one that every path leads to."""

    def use(config: Any) -> Any:
        tokenizer = framed_bytes() if config.family == "bert" else byte_tokenizer()
        built, tokenizer = tiny_model(config), tokenizer.with_special_tokens(SPECIALS.get(config.family, ()))
        loaded = Trained(built, tokenizer, config, OBJECTIVES[config.family], None)
        monkeypatch.setattr("tasks.export.folder.load_model", lambda path, device: loaded)
        return tokenizer

    return use


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_is_exported_and_checked(name, dtype, trained, tmp_path):
    config, out = CONFIGS[name], tmp_path / "deep" / "out"
    tokenizer = trained(config)
    differences = export(tmp_path, out, dtype)
    kinds = {kind: differences[f"logits in {kind}, of the largest"] for kind in (dtype, "float32")}
    assert kinds["float32"] <= 1e-5 and kinds[dtype] <= 5e-2
    assert {str(t.dtype) for t in load_file(out / "model.safetensors").values()} == {f"torch.{dtype}"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]

    theirs = getattr(transformers, architecture(config).auto_class).from_pretrained(out)
    assert theirs.dtype == getattr(torch, dtype)
    words = transformers.AutoTokenizer.from_pretrained(out)
    assert words.model_max_length == config.max_positions
    assert words.decode(words("naïve <x> 🙂")["input_ids"], skip_special_tokens=True) == "naïve <x> 🙂"
    batch = words(["a text", "a longer text"], padding=words.pad_token is not None, return_tensors=None)
    assert ("token_type_ids" in batch) == (name == "bert")
    if config.family != "bert":
        ids = theirs.generation_config
        assert ids.eos_token_id == tokenizer.eod_id and ids.pad_token_id is not None
        assert bool(ids.do_sample) == (config.family == "gpt")
        theirs.float().generate(**words("Once", return_tensors="pt"), max_new_tokens=3)


def test_tokenizers_surround_texts_as_in_training(trained, tmp_path):
    tokenizer = trained(CONFIGS["bert"])
    export(tmp_path, tmp_path / "bert")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "bert")
    pair = words("ab", "c")
    pad, cls, sep, mask = tokenizer.ids_of(BERT)
    assert pair["input_ids"] == [cls, 97, 98, sep, 99, sep] and pair["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert words("a[MASK]")["input_ids"] == [cls, 97, mask, sep] and words.pad_token_id == pad
    hf = transformers.AutoConfig.from_pretrained(tmp_path / "bert")
    assert (hf.pad_token_id, hf.cls_token_id, hf.sep_token_id) == (pad, cls, sep)

    tokenizer = trained(CONFIGS["t5"])
    export(tmp_path, tmp_path / "t5")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "t5")
    assert words("a<extra_id_1>")["input_ids"] == [97, tokenizer.ids_of(["<extra_id_1>"])[0], tokenizer.eod_id]
    hf = transformers.AutoConfig.from_pretrained(tmp_path / "t5")
    assert hf.decoder_start_token_id == hf.pad_token_id == tokenizer.ids_of(T5)[0]


@pytest.mark.parametrize(("family", "hole"), [("bert", "[MASK]"), ("t5", "<extra_id_0>")])
def test_holes_take_the_space_that_they_hid_in_training(family, hole, tmp_path):
    """Where a token is a word with its space, as `tasks generate` reads them."""
    vocab = {char: byte for byte, char in byte_alphabet().items()} | {"Ġa": 256}
    tokenizer = with_end_token(byte_level_bpe(vocab, [("Ġ", "a")], None))
    config = tiny_t5(vocab_size=400) if family == "t5" else CONFIGS[family]
    made = tiny_trained(config, tokenizer)
    words = transformers.AutoTokenizer.from_pretrained(save_folder(made, tmp_path / "out"))
    read = encode_prompt(f"b {hole} a", made.objective, made.tokenizer)
    assert words(f"b {hole} a")["input_ids"] == (read.source or read.tokens)
    assert words("b  a", add_special_tokens=False)["input_ids"] == tokenizer.encode("b  a")


def test_special_tokens_that_training_did_not_add_are_not_exported(monkeypatch, tmp_path):
    spec = tokenizers.Tokenizer.from_str(byte_tokenizer().spec)
    spec.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)])
    config = CONFIGS["llama"]
    loaded = Trained(tiny_model(config), Tokenizer(spec.to_str()), config, CausalLM(), None)
    monkeypatch.setattr("tasks.export.folder.load_model", lambda path, device: loaded)
    export(tmp_path, tmp_path / "out")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("ab")["input_ids"] == [97, 98]


def swapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    key, value = (next(k for k in state if k.endswith(f"{x}_proj.weight")) for x in "kv")
    return {**state, key: state[value], value: state[key]}


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "modernbert", "t5"])
def test_a_wrong_conversion_leaves_nothing(name, trained, tmp_path, monkeypatch):
    trained(CONFIGS[name])
    right = model.convert.to_hf_names
    monkeypatch.setattr(model.convert, "to_hf_names", lambda config, state, *rest: right(config, swapped(state), *rest))
    with pytest.raises(CheckpointError, match=r"export is refused: logits.* differ by .*float32, more than 1e-05"):
        export(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_weight_leaves_nothing(trained, tmp_path, monkeypatch):
    trained(CONFIGS["llama"])
    right = model.convert.to_hf_names
    missing = "model.layers.1.mlp.up_proj.weight"
    monkeypatch.setattr(
        model.convert, "to_hf_names", lambda *a: {k: v for k, v in right(*a).items() if k != missing}
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=f"missing_keys in transformers.*{missing}"):
        export(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_tokenizer_leaves_nothing(trained, tmp_path, monkeypatch):
    trained(CONFIGS["bert"])
    monkeypatch.setattr(tasks.export.tokenizer, "templates", lambda kind, tokens: None)
    with pytest.raises(CheckpointError, match=r"export is refused: input_ids of .The quick"):
        export(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused(trained, tmp_path, monkeypatch):
    trained(tiny_config("llama", logit_softcap=30.0))
    with pytest.raises(ConfigError, match=r"model\.logit_softcap: 30\.0 has no equivalent"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "taken").mkdir()
    with pytest.raises(CheckpointError, match="taken exists already"):
        export(tmp_path, tmp_path / "taken")
    monkeypatch.setitem(sys.modules, "transformers", None)
    trained(CONFIGS["llama"])
    with pytest.raises(ConfigError, match=r"transformers is not installed: pip install -e"):
        export(tmp_path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.slow
def test_a_tied_bert_trained_by_two_ranks_under_zero_3(recipe, tmp_path):
    settings = dict(
        family="bert", preset="bert", vocab_size=576, num_layers=2, hidden_size=32, num_heads=4, max_positions=64
    )
    text = recipe.read_text()
    start, end = text.index("model:"), text.index("batch:")
    recipe.write_text(
        text[:start] + f"model: {json.dumps(settings)}\nobjective: {{name: masked_lm, pairs: nsp}}\n" + text[end:]
    )
    result = train(recipe, "engine.ds_config=zero3", "schedule.steps=4", ranks=2)
    assert result.returncode == 0, result.stderr
    command = ["export", tmp_path / "runs/tiny", "--out", tmp_path / "out"]
    result = task(*command)
    assert result.returncode == 0, result.stderr
    assert "those who read it compute the same" in result.stdout
    theirs = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "out")
    ours = tasks.checkpoints.load_model(tmp_path / "runs/tiny", torch.device("cpu")).model
    assert torch.equal(theirs.cls.predictions.decoder.weight, ours.embed_tokens.weight)
    again = task(*command)
    assert again.returncode == 2 and "exists already" in again.stderr
