"""`python -m tasks neighbours`: the nearest rows of the embedding."""

import pytest
import torch
import transformers

from config import ConfigError
from data.tokenizer import byte_tokenizer
from data.vocabulary import train_tokenizer
from tasks.checkpoints import load_model
from tasks.neighbours import neighbours, token_id
from tests.conftest import task
from tests.tasks.hugging_face import BERT, save


def test_neighbours_are_the_rows_at_the_smallest_angle():
    weight_VD = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 2.0], [-1.0, 0.0], [9.0, 1.0]])
    found = neighbours(weight_VD, 0, 10)
    assert [number for number, _ in found] == [4, 1, 2, 3]
    assert [cosine for _, cosine in found] == pytest.approx([9 / 82**0.5, 0.5**0.5, 0, -1])


def test_a_word_is_looked_up_as_inside_a_sentence():
    tokenizer = train_tokenizer(["the cat sat on the mat and the cat slept " * 20], 300)
    assert token_id(tokenizer, "cat") == tokenizer.encode(" cat")[0]
    assert token_id(tokenizer, "<|endoftext|>") == tokenizer.eod_id
    with pytest.raises(ConfigError, match=r"'cats' is not one token of this vocabulary, but .*; similar tokens: .*cat"):
        token_id(tokenizer, "cats")
    with pytest.raises(ConfigError, match="'ab' is not one token of this vocabulary, but 'a', 'b'"):
        token_id(byte_tokenizer(), "ab")


def test_the_command_prints_them(tmp_path):
    theirs = save(tmp_path, transformers.BertModel, BERT)
    result = task("neighbours", tmp_path, "a", "[MASK]", "--count", "2")
    assert result.returncode == 0, result.stderr
    weight_VD = torch.nn.functional.normalize(theirs.embeddings.word_embeddings.weight[:261], dim=1)
    best = (weight_VD @ weight_VD[97]).topk(2 + 1)
    tokenizer = load_model(tmp_path, torch.device("cpu")).tokenizer
    named = ", ".join(f"{tokenizer.decode([best.indices[i]])!r} {best.values[i]:.3f}" for i in (1, 2))
    assert result.stdout.splitlines()[0] == f"a: {named}" and result.stdout.splitlines()[1].startswith("[MASK]: ")
