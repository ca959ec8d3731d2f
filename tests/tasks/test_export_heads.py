"""Exports of fine-tuned models: transformers' scores of texts are ours, and the folder read back scores them too."""

import json
import re
import resource

import pytest
import torch
import transformers

import model.convert
from config import CheckpointError, ConfigError
from config.supervised_schema import (
    Classification,
    Instruction,
    Regression,
    Relation,
    SequenceToSequence,
    TokenClassification,
)
from data.specials import T5
from data.tokenizer import byte_tokenizer
from model import set_task_head
from model.hf import architecture
from tasks.checkpoints import Trained, load_model
from tasks.export.folder import export
from tests.model.tiny import tiny_config, tiny_model, tiny_t5
from tests.tasks.framed import framed_bytes

CPU = torch.device("cpu")
TEXTS, SECONDS = ["a text", "another one, longer"], ["x", "y z"]
LABELS = ("no", "yes", "perhaps")
CASES = {
    "bert labels": ("bert", Classification(labels=LABELS)),
    "bert number": ("bert", Regression(mean=50.0, scale=9.0)),
    "bert tokens": ("bert", TokenClassification(labels=("O", "B-X", "I-X"))),
    "modernbert labels": ("modernbert", Classification(labels=LABELS)),
    "gpt2 labels": ("gpt2", Classification(labels=LABELS)),
    "qwen3 labels": ("qwen3", Classification(labels=LABELS)),
    "llama tokens": ("llama", TokenClassification(labels=("O", "B-X"))),
}


@pytest.fixture
def use(monkeypatch):
    """Makes a random tiny model with the head of an objective the one that every path leads to."""

    def use(config, objective) -> Trained:
        tokenizer = framed_bytes() if config.family == "bert" else byte_tokenizer()
        if config.family == "t5":
            tokenizer = tokenizer.with_special_tokens(T5)
        built = tiny_model(config)
        set_task_head(built, objective)
        torch.manual_seed(5)
        for parameter in built.lm_head.parameters():
            if parameter is not built.embed_tokens.weight:
                torch.nn.init.normal_(parameter, std=0.3)
        trained = Trained(built.eval(), tokenizer, config, objective, None)
        monkeypatch.setattr("tasks.export.folder.load_model", lambda path, device: trained)
        return trained

    return use


def rows(trained: Trained, pairs: bool) -> list[tuple[list[int], list[int]]]:
    """Ids and token types as in training: [CLS] a [SEP] b [SEP], and in a decoder every text with its end."""
    bert, made = trained.config.family == "bert", []
    begin, end = trained.tokenizer.ids_of(["[CLS]", "[SEP]"]) if bert else (None, trained.tokenizer.eod_id)
    for text, second in zip(TEXTS, SECONDS, strict=True):
        first = [*([begin] if bert else []), *trained.tokenizer.encode(text), end]
        rest = [*trained.tokenizer.encode(second), end] if pairs else []
        made.append((first + rest, [0] * len(first) + [1] * len(rest)))
    return made


@torch.no_grad()
def scores(trained: Trained, pairs: bool) -> list[torch.Tensor]:
    """Of each text, or of each of its tokens, one text at a time."""
    found, config = [], trained.config
    for ids, types in rows(trained, pairs):
        typed = {"token_types_BT": torch.tensor([types])} if getattr(config, "token_types", 0) else {}
        hidden_TD = trained.model(torch.tensor([ids]), **typed)[0]
        if not isinstance(trained.objective, TokenClassification):
            hidden_TD = hidden_TD[0 if config.family == "bert" else -1]
        found.append(trained.model.lm_head(hidden_TD))
    return found


@pytest.mark.parametrize("case", CASES)
def test_transformers_scores_texts_and_pairs_as_we_do(case, use, tmp_path):
    preset, objective = CASES[case]
    rows_left = 257 if preset == "gpt2" else 320  # gpt2's table has no row for padding
    trained = use(tiny_config(preset, vocab_size=rows_left), objective)
    expected = {pairs: scores(trained, pairs) for pairs in (False, True)}
    differences = export(tmp_path, tmp_path / "out")
    assert differences["logits in float32, of the largest"] <= 1e-5

    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    name = architecture(trained.config, objective).auto_class
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "out").eval()
    again = load_model(tmp_path / "out", CPU)
    for pairs, expected_scores in expected.items():
        batch = words(TEXTS, SECONDS if pairs else None, padding=True, return_tensors="pt")
        with torch.no_grad():
            actual = theirs(**batch).logits
        ours = scores(again, pairs)
        for row, expected_score in enumerate(expected_scores):
            score = actual[row, : len(expected_score)] if objective.name == "token_classification" else actual[row]
            scale = max(1.0, expected_score.abs().max().item())
            assert (score - expected_score).abs().max() <= 1e-5 * scale
            assert (ours[row] - expected_score).abs().max() <= 1e-5 * scale
    assert type(again.objective) is type(objective)
    if objective.name != "regression":
        assert again.objective.labels == objective.labels == tuple(theirs.config.id2label.values())
    assert theirs.config.problem_type == (
        "regression" if objective.name == "regression" else "single_label_classification"
    )
    text = (tmp_path / "out/README.md").read_text()
    assert f"pipeline_tag: {'token' if objective.name == 'token_classification' else 'text'}-classification" in text


def test_a_wrong_head_leaves_nothing(use, tmp_path, monkeypatch):
    use(tiny_config("bert", vocab_size=320), Classification(labels=LABELS))
    right = model.convert.to_hf_names

    def wrong(*arguments):
        weights = right(*arguments)
        return weights | {"classifier.weight": 1.001 * weights["classifier.weight"]}

    monkeypatch.setattr(model.convert, "to_hf_names", wrong)
    with pytest.raises(CheckpointError, match=r"scores of texts differ by .*float32, more than 1e-05"):
        export(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_card_of_a_classifier_runs(use, tmp_path, capsys):
    use(tiny_config("bert", vocab_size=320), Classification(labels=LABELS))
    export(tmp_path, tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    exec(text.split("```python\n")[1].split("```")[0].replace("FOLDER", str(tmp_path / "out")), {})
    assert re.search(r"'label': '(no|yes|perhaps)'", capsys.readouterr().out)


def test_a_model_of_prompts_and_answers_has_their_chat_template(use, tmp_path):
    trained = use(tiny_config("llama", vocab_size=320), Instruction())
    export(tmp_path, tmp_path / "out")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = {"system": "Count.", "user": "How many? ", "assistant": "two"}
    turns = [{"role": role, "content": text} for role, text in texts.items()]
    ids = words.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert ids == [*trained.tokenizer.encode("Count.\n\nHow many? two"), trained.tokenizer.eod_id]
    asked = words.apply_chat_template(turns[1:2], return_dict=True, add_generation_prompt=True)["input_ids"]
    assert asked == trained.tokenizer.encode("How many? ")


def test_a_translator_writes_as_much_as_it_learned(use, tmp_path):
    use(tiny_t5(vocab_size=384, num_decoder_layers=2), SequenceToSequence(target_length=7))
    export(tmp_path, tmp_path / "out")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.generate(**words("a", return_tensors="pt")).shape[1] <= 1 + 7


@pytest.mark.parametrize(
    "preset, objective, message",
    [
        ("bert", Relation(labels=("a", "b")), "relation has no equivalent in transformers.*--pooling exports"),
        ("llama", Regression(mean=2.0), r"objective\.mean 2 has no equivalent.*--pooling exports"),
    ],
)
def test_a_head_without_equivalent_is_refused_but_not_the_model_under_it(preset, objective, message, use, tmp_path):
    use(tiny_config(preset, vocab_size=320), objective)
    with pytest.raises(ConfigError, match=message):
        export(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    export(tmp_path, tmp_path / "out", pooling="last")
    again = load_model(tmp_path / "out", CPU)
    assert again.objective.name == "contrastive" and again.objective.pooling == "last"


def test_llama_cpp_has_no_labels(use, tmp_path):
    use(tiny_config("llama", vocab_size=320), Classification(labels=LABELS))
    with pytest.raises(ConfigError, match=r"--gguf is for decoders that write text, .* fine-tuned for classification"):
        export(tmp_path, tmp_path / "out", gguf=True)


def test_an_interrupted_export_leaves_nothing(use, tmp_path, monkeypatch):
    use(tiny_config("bert", vocab_size=320), Classification(labels=LABELS))

    def interrupt(*args, **kwargs):
        assert (tmp_path / ".out.partial/model.safetensors").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.export.folder.check_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("room", [1_000, 60_000], ids=["no room for the tokenizer", "none for the weights"])
def test_files_that_cannot_be_written_leave_nothing(room, use, tmp_path):
    """A limit to the size of files fails as a full disk does, in the middle of one."""
    use(tiny_config("bert", vocab_size=320), Classification(labels=LABELS))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(CheckpointError, match=r"out cannot be written: .*File too large"):
            export(tmp_path, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_servers_find_the_settings_that_they_ask_for(use, tmp_path):
    """Required fields of text-embeddings-inference's configs (router/src/lib.rs, backends/candle/src/models) and what vLLM
    decides by (architectures, pooling switches). Neither runs here."""
    tei = {
        "bert": "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
        "max_position_embeddings type_vocab_size initializer_range layer_norm_eps pad_token_id model_type",
        "modernbert": "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_activation "
        "max_position_embeddings initializer_range initializer_cutoff_factor norm_eps norm_bias pad_token_id eos_token_id "
        "bos_token_id cls_token_id sep_token_id global_rope_theta attention_bias attention_dropout "
        "global_attn_every_n_layers local_attention local_rope_theta classifier_activation num_labels model_type",
    }
    for preset, needed in tei.items():
        use(tiny_config(preset, vocab_size=320), Classification(labels=LABELS))
        export(tmp_path, tmp_path / preset)
        hf = json.loads((tmp_path / preset / "config.json").read_text())
        assert [name for name in needed.split() if hf.get(name) is None] == []
        assert len(hf["id2label"]) == hf["num_labels"] == 3 and hf["label2id"]["yes"] == 1
        assert hf["architectures"] == [
            {"bert": "BertForSequenceClassification", "modernbert": "ModernBertForSequenceClassification"}[preset]
        ]
        assert not (tmp_path / preset / "modules.json").exists()  # vLLM takes a folder with it for an embedding model
