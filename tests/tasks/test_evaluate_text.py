"""Perplexity, bits per byte, pseudo-perplexity and held-out loss against transformers on the same weights."""

import json
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given
from hypothesis import strategies as st

from config import ConfigError, DataError
from config.data_schema import DataSection
from data.dataset import load_tokenizer, open_dataset
from data.validation import open_validation
from tasks.checkpoints import load_model
from tasks.evaluation.language import cut, perplexity, score
from tasks.evaluation.text import check_writes, held_out_loss, predict, read_dataset, read_text
from tests.model.tiny import tiny_config, tiny_t5
from tests.tasks.trained import save_folder, tiny_trained

CPU = torch.device("cpu")
TEXTS = ["A short one.", "Naïve café, 日本語! " * 9, "x", "the model reads a row of tokens " * 4]


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_windows_predict_every_token_once_with_enough_context(count, length, data):
    stride = data.draw(st.integers(1, length))
    windows = list(cut(range(count + 1), length, stride))
    predicted = [token for tokens, scored in windows for token in tokens[-scored:]]
    assert predicted == list(range(1, count + 1))
    assert all(len(tokens) - 1 <= length for tokens, _ in windows)
    assert all(len(tokens) - scored >= length - stride + 1 for tokens, scored in windows[1:-1])
    assert all(tokens[-scored] - tokens[0] >= length - stride for tokens, scored in windows[1:])
    assert all(after[0][0] - before[0][0] == stride for before, after in pairwise(windows))


def theirs_nats(model, tokens: list[int], window: int, stride: int) -> float:
    """The loop of transformers' own guide to the perplexity of fixed-length models."""
    done, nats = 0, 0.0
    for begin in range(0, len(tokens) - 1, stride):
        end = min(begin + window + 1, len(tokens))
        ids = torch.tensor([tokens[begin:end]])
        labels = ids.clone()
        labels[:, : -(end - 1 - done)] = -100
        logits = model(ids).logits[0, :-1]
        nats += F.cross_entropy(logits.double(), labels[0, 1:], ignore_index=-100, reduction="sum").item()
        done = end - 1
        if end == len(tokens):
            break
    return nats


@pytest.mark.parametrize("stride", [16, 5])
@pytest.mark.parametrize("preset", ["gpt2", "qwen3"])
def test_perplexity_and_bits_per_byte_are_transformers(preset, stride, tmp_path):
    trained = tiny_trained(tiny_config(preset, vocab_size=320))
    documents = [(trained.tokenizer.encode(text), len(text.encode())) for text in [*TEXTS, ""]]
    values, curve = perplexity(
        trained.model, documents, end_id=trained.tokenizer.eod_id, window=16, stride=stride, device=CPU
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(save_folder(trained, tmp_path / "hf")).eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        nats = sum(theirs_nats(theirs, [words.eos_token_id, *words(text)["input_ids"]], 16, stride) for text in TEXTS)
    tokens = sum(len(text.encode()) for text in TEXTS)
    assert values["tokens"] == values["text_bytes"] == tokens
    assert values["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert values["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert values["bits_per_byte"] == pytest.approx(nats / math.log(2) / tokens, rel=1e-5)
    assert [x for x, _ in curve.lines["loss"]] == [1, 2, 4, 8, 16]


def test_a_model_that_knows_nothing_needs_the_bits_of_its_vocabulary():
    trained = tiny_trained(tiny_config("gpt2", vocab_size=512))
    torch.nn.init.zeros_(trained.model.lm_head.weight)
    result = predict(trained, [(trained.tokenizer.encode("bytes"), 5)], "x", None, None, CPU)
    assert result.metrics["perplexity"] == pytest.approx(512) and result.metrics["bits_per_byte"] == pytest.approx(9)
    assert result.settings == {"window": 64, "stride": 64}


def test_the_greedy_tokens_are_known():
    trained = tiny_trained(tiny_config("llama", vocab_size=320))
    tokens = [256, *b"some text"]
    (found,) = score(trained.model, list(cut(tokens, 64, 64)), CPU)
    with torch.no_grad():
        logits = trained.model.logits(trained.model(torch.tensor([tokens[:-1]])))[0]
    assert found.greedy_N.tolist() == (logits.argmax(-1) == torch.tensor(tokens[1:])).tolist()


def test_a_prepared_split_and_its_texts_are_the_same(corpus, tmp_path):
    tokenizer = load_tokenizer(corpus)
    trained = tiny_trained(tiny_config("llama", vocab_size=512), tokenizer)
    dataset = open_dataset(corpus, "valid")
    (shard,) = dataset.shards
    texts = [tokenizer.decode(shard.document(number)[:-1]) for number in range(5)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"content": text}) + "\n" for text in texts))
    prepared = list(read_dataset(corpus, "valid", trained))
    assert len(prepared) == shard.document_count
    assert sum(size for _, size in prepared) == dataset.manifest.splits["valid"][0].text_bytes
    read = list(read_text(str(path), tokenizer, "content"))
    assert [tokens for tokens, _ in read] == [tokens for tokens, _ in prepared[:5]]
    assert [size for _, size in read] == [len(text.encode()) for text in texts]


def test_pseudo_perplexity_is_transformers(tmp_path):
    trained = tiny_trained(tiny_config("bert", vocab_size=320))
    text = "Naïve café, and more text than fits one window."
    result = predict(trained, [(trained.tokenizer.encode(text), len(text.encode()))], "x", 20, None, CPU)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(save_folder(trained, tmp_path / "hf")).eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = words(text, add_special_tokens=False)["input_ids"]
    nats = 0.0
    for begin in range(0, len(ids), 18):
        row = torch.tensor([words.cls_token_id, *ids[begin : begin + 18], words.sep_token_id])
        for place in range(1, len(row) - 1):
            hidden = row.clone()
            hidden[place] = words.mask_token_id
            with torch.no_grad():
                nats += F.cross_entropy(theirs(hidden[None]).logits[0, place], row[place]).item()
    assert result.metrics["tokens"] == len(ids)
    assert result.metrics["pseudo_perplexity"] == pytest.approx(math.exp(nats / len(ids)), rel=1e-5)


def test_t5s_held_out_loss_is_transformers(corpus, tmp_path):
    trained = tiny_trained(tiny_t5(vocab_size=640, num_decoder_layers=2), load_tokenizer(corpus))
    result = held_out_loss(trained, corpus, "valid", 32, 10, CPU)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(save_folder(trained, tmp_path / "hf")).eval()
    data = DataSection.model_validate({"datasets": [{"path": str(corpus)}], "row_length": 32})
    batches = open_validation(data, trained.objective, rows=10, micro_batch_size=10, vocab_size=640)
    (batch,) = batches
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(batch.source_BS), labels=torch.tensor(batch.labels_BT)).loss.item()
    assert result.metrics["lm_loss"] == pytest.approx(expected, rel=1e-5)
    assert result.metrics["lm_targets"] == batch.labels_BT.size


def test_an_exported_encoder_is_judged_by_the_same_rows(corpus, tmp_path):
    """Its tokenizer has a template around each text, which the dataset's has not."""
    trained = tiny_trained(tiny_config("bert", vocab_size=576), load_tokenizer(corpus))
    exported = load_model(save_folder(trained, tmp_path / "hf"), CPU)
    ours, theirs = (held_out_loss(each, corpus, "valid", 32, 9, CPU) for each in (trained, exported))
    assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-6) and ours.settings["rows"] == 9


def test_what_cannot_be_predicted_is_said(corpus, tmp_path):
    gpt, bert = tiny_trained(tiny_config("llama", vocab_size=512)), tiny_trained(tiny_config("bert", vocab_size=512))
    with pytest.raises(ConfigError, match="--window 65 is not from 1 to the model's 64 positions"):
        predict(gpt, [], "x", 65, None, CPU)
    with pytest.raises(ConfigError, match="--stride 9 is not from 1 to --window 8"):
        predict(gpt, [], "x", 8, 9, CPU)
    with pytest.raises(ConfigError, match="--stride 4: an encoder sees both sides"):
        predict(bert, [], "x", 8, 4, CPU)
    with pytest.raises(DataError, match="there is no text to predict"):
        predict(gpt, [([], 0)], "x", 8, None, CPU)
    with pytest.raises(
        DataError, match=r"written with another tokenizer \(\w{16}\) than the model's \(\w{16}\): prepare"
    ):
        next(read_dataset(corpus, "valid", gpt))
    with pytest.raises(ConfigError, match=r"--text needs a language model, .* objective contrastive: give --sts"):
        check_writes(tiny_trained(tiny_config("bert", vocab_size=576), name="contrastive"), "--text")
    with pytest.raises(ConfigError, match="--stride 0 is not from 1 to --window 8"):
        predict(gpt, [], "x", 8, 0, CPU)
    with pytest.raises(ConfigError, match="--window 65 is not from 1 to the model's 64 positions"):
        held_out_loss(bert, corpus, "valid", 65, 4, CPU)
    with pytest.raises(ConfigError, match=r"--window 3: data\.row_length 3 leaves room for 1 tokens of text"):
        held_out_loss(bert, corpus, "valid", 3, 4, CPU)
    with pytest.raises(ConfigError, match="--rows 0: give at least 1"):
        held_out_loss(bert, corpus, "valid", 32, 0, CPU)
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"b\.txt: text 0 .* is not UTF-8"):
        list(read_text(str(folder), gpt.tokenizer, "text"))
    (folder / "a.txt").write_text("well")
    with pytest.raises(DataError, match=r"b\.txt is not UTF-8"):
        list(read_text(str(folder), gpt.tokenizer, "text"))
