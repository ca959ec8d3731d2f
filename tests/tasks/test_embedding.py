"""Embedder against sentence-transformers and transformers."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from config import ConfigError
from config.objective_schema import CausalLM, Contrastive, MaskedLM, SpanCorruption
from data.specials import BERT as BERT_NAMES
from data.tokenizer import byte_tokenizer
from tasks.checkpoints import Trained, load_model
from tasks.embedding import Embedder, batches, packs
from tests.model.tiny import tiny_config, tiny_model, tiny_t5
from tests.tasks.hugging_face import BERT, GPT2, LLAMA, MODERNBERT, save

CPU = torch.device("cpu")
TEXTS = [
    "one text",
    "Größe 1 234,5 €; 日本語",
    "",
    "a",
    "longer than the model's positions " * 9,
    "line\nbreak",
    "x " * 20,
]


@pytest.mark.parametrize(
    "make, config, mode, framed",
    [
        (transformers.BertModel, BERT, "cls", True),
        (transformers.BertForMaskedLM, BERT, "mean", True),
        (transformers.ModernBertModel, MODERNBERT, "mean", True),
        (transformers.GPT2Model, GPT2, "lasttoken", True),
        (transformers.LlamaForCausalLM, LLAMA, "lasttoken", False),
        (transformers.LlamaModel, LLAMA, "mean", True),
    ],
    ids=["bert", "bert mean", "modernbert", "gpt2", "llama", "llama mean"],
)
def test_vectors_are_those_of_sentence_transformers(make, config, mode, framed, tmp_path):
    save(tmp_path / "hf", make, config, framed)
    transformer = Transformer(str(tmp_path / "hf"))
    theirs = SentenceTransformer(modules=[transformer, Pooling(32, mode), Normalize()], device="cpu")
    theirs.save(str(tmp_path / "st"))
    embedder = Embedder(load_model(tmp_path / "st", CPU), batch_tokens=100)
    assert embedder.pooling == mode.removesuffix("token") and embedder.max_tokens == 64
    texts = TEXTS if framed else [text for text in TEXTS if text]  # theirs cannot read no token at all
    expected_ND = theirs.encode(texts, batch_size=3, convert_to_tensor=True)
    assert (embedder.encode(texts) - expected_ND).abs().max() <= 1e-6
    theirs.truncate_dim = 8
    expected_ND = theirs.encode(texts, normalize_embeddings=True, convert_to_tensor=True)
    actual_ND = Embedder(load_model(tmp_path / "st", CPU), dimensions=8).encode(texts)
    assert actual_ND.shape == (len(texts), 8) and (actual_ND - expected_ND).abs().max() <= 1e-6


def test_capitals_are_made_small_where_the_folder_says_so(tmp_path):
    save(tmp_path / "hf", transformers.BertModel, BERT)
    transformer = Transformer(str(tmp_path / "hf"), do_lower_case=True)
    theirs = SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")
    theirs.save(str(tmp_path / "st"))
    (tmp_path / "st/tokenizer.json").write_bytes((tmp_path / "hf/tokenizer.json").read_bytes())
    (tmp_path / "st/sentence_bert_config.json").write_text('{"do_lower_case": true}')
    texts = ["Größe 1", "ÄRGER mit ABC", "small"]
    actual_ND = Embedder(load_model(tmp_path / "st", CPU)).encode(texts)
    assert (actual_ND - theirs.encode(texts, convert_to_tensor=True)).abs().max() <= 1e-6
    assert torch.equal(
        actual_ND, Embedder(load_model(tmp_path / "hf", CPU), normalize=False).encode([t.lower() for t in texts])
    )


def test_vectors_of_bert_weights_are_the_states_of_transformers(tmp_path):
    theirs = save(tmp_path, transformers.BertModel, BERT)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    trained = load_model(tmp_path, CPU)
    for text, vector_D in zip(TEXTS, Embedder(trained, "cls", normalize=False).encode(TEXTS), strict=True):
        ids = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            assert (theirs(**ids).last_hidden_state[0, 0] - vector_D).abs().max() <= 1e-5


def test_neither_order_nor_company_changes_a_vector(tmp_path):
    save(tmp_path, transformers.BertModel, BERT)
    trained = load_model(tmp_path, CPU)
    alone_ND = torch.cat([Embedder(trained).encode([text]) for text in TEXTS])
    for batch_tokens in (1, 70, 10_000):
        vector_ND = Embedder(trained, batch_tokens=batch_tokens).encode(TEXTS[::-1])
        assert (vector_ND.flip(0) - alone_ND).abs().max() <= 1e-6
    assert torch.allclose(alone_ND.norm(dim=1), torch.ones(len(TEXTS)))
    assert Embedder(trained).encode([]).shape == (0, 32)


def test_batches_hold_similar_lengths_within_the_budget():
    lengths = [3, 50, 7, 7, 200, 1, 49]
    found = list(batches(lengths, 100))
    assert sorted(number for batch in found for number in batch) == list(range(7))
    assert [[lengths[i] for i in batch] for batch in found] == [[200], [50, 49], [7, 7, 3, 1]]


def test_packs_hold_rows_in_order_within_the_budget():
    assert list(packs([3, 50, 47, 1, 200, 1, 49], 100)) == [[0, 1, 2], [3], [4], [5, 6]]
    assert list(packs([], 100)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", ["bert", "modernbert", "llama"])
def test_texts_in_one_row_get_the_vectors_of_padded_rows(preset, dtype):
    """As a CPU and as a GPU read them; ModernBERT's longest text passes its windows."""
    config = tiny_config(preset, vocab_size=320)
    embedder = Embedder(trained_here(config, CausalLM() if preset == "llama" else MaskedLM()))
    embedder.model.to(dtype)
    rows = [[7] * 3, list(range(60)), [1], list(range(50, 90))]
    packed_ND = embedder.encode_tokens(rows)
    embedder.packs = False
    assert (embedder.encode_tokens(rows) - packed_ND).abs().max() <= (1e-6 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize(
    "preset, objective, pooling, row",
    [
        ("bert", MaskedLM(), "mean", ["[CLS]", "a", "b", "[SEP]"]),
        ("modernbert", Contrastive(pooling="cls"), "cls", ["[CLS]", "a", "b", "[SEP]"]),
        ("llama", Contrastive(pooling="last"), "last", ["[CLS]", "a", "b", "[SEP]"]),
        ("llama", CausalLM(), "last", ["a", "b"]),
    ],
)
def test_texts_of_a_run_stand_in_the_rows_it_was_trained_on(preset, objective, pooling, row):
    embedder = Embedder(trained_here(tiny_config(preset, vocab_size=320), objective))
    assert embedder.pooling == pooling and embedder.tokenize(["ab"]) == [embedder.tokenizer.ids_of(row)]
    long = embedder.cut(embedder.tokenize(["ab" * 500])[0])
    assert len(long) == 64 and long[-1] == embedder.tokenizer.ids_of(row[-1:])[0]
    assert torch.isfinite(embedder.encode([""])).all()


def trained_here(config, objective) -> Trained:
    tokenizer = byte_tokenizer().with_special_tokens(BERT_NAMES)
    return Trained(tiny_model(config), tokenizer, config, objective, SimpleNamespace())


@pytest.mark.parametrize(
    "preset, options, message",
    [
        ("t5", {}, "embedding needs a model of family bert or gpt, but this one is of family t5"),
        ("llama", {"pooling": "cls"}, "pooling cls is the first token's state, which in a decoder"),
        ("bert", {"dimensions": 33}, "dimensions 33: the model has 32, choose from 1 to 32"),
        ("bert", {"dimensions": 0}, "dimensions 0: the model has 32"),
        ("bert", {"max_tokens": 65}, r"max_tokens 65: choose from 3 .* to the model's 64 positions"),
        ("bert", {"max_tokens": 2}, "max_tokens 2: choose from 3"),
        ("bert", {"max_tokens": 0}, "max_tokens 0: choose from 3"),
        ("bert", {"batch_tokens": 0}, "batch_tokens 0: choose at least 1"),
    ],
)
def test_what_a_model_cannot_serve_is_refused(preset, options, message):
    config = tiny_t5(vocab_size=320) if preset == "t5" else tiny_config(preset, vocab_size=320)
    objective = {"t5": SpanCorruption(), "llama": CausalLM(), "bert": MaskedLM()}[preset]
    with pytest.raises(ConfigError, match=message):
        Embedder(trained_here(config, objective), **options)
