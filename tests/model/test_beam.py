"""Beam search finds what transformers' finds."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import model
from config import ConfigError
from model.beam import beam_search
from tests.model.tiny import random_tokens, tiny_config, tiny_model, tiny_t5

LENGTHS = [20, 7, 1, 13]
STOP = 3


@pytest.mark.parametrize("num_beams", [1, 3, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 0.8, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_translations_equal_theirs(num_beams, length_penalty, seed, tmp_path):
    config = tiny_t5(num_decoder_layers=2, init_std=0.5, vocab_size=24)
    ours = tiny_model(config)
    model.save_hf(tmp_path, config, ours.state_dict(), token_ids={"pad_token_id": 0, "eos_token_id": STOP})
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    source = random_tokens(config, rows=4, length=20, seed=seed)
    mask = torch.arange(20) < torch.tensor(LENGTHS)[:, None]
    expected = theirs.generate(
        source, attention_mask=mask.long(), decoder_start_token_id=0, max_new_tokens=12, do_sample=False,
        num_beams=num_beams, length_penalty=length_penalty, early_stopping=False, eos_token_id=STOP, pad_token_id=0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    sources = [row[:length] for row, length in zip(source.tolist(), LENGTHS, strict=True)]
    found = beam_search(
        ours, [[0]] * 4, sources=sources, num_beams=num_beams, max_new_tokens=12, stop_ids=(STOP,),
        length_penalty=length_penalty,
    )  # fmt: skip
    for row, (tokens, score) in enumerate(found):
        theirs_row = expected.sequences[row, 1:].tolist()
        assert tokens == theirs_row[: theirs_row.index(STOP) if STOP in theirs_row else 12]
        if num_beams > 1:
            assert score == pytest.approx(expected.sequences_scores[row].item(), rel=1e-4)


def test_a_decoder_with_prompts_of_several_lengths_equals_theirs(tmp_path):
    config = tiny_config(vocab_size=24, init_std=0.4)
    ours = tiny_model(config)
    model.save_hf(tmp_path, config, ours.state_dict(), token_ids={"eos_token_id": STOP})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompts = [[5, 9, 2, 7], [8], [4, 4]]
    found = beam_search(ours, prompts, num_beams=4, max_new_tokens=10, stop_ids=(STOP,))
    for prompt, (tokens, _) in zip(prompts, found, strict=True):
        row = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=10, num_beams=4,
            do_sample=False, eos_token_id=STOP, pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert tokens == row[: row.index(STOP) if STOP in row else 10]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="need 65 positions and the source 0, but max_positions is 64"):
        beam_search(tiny_model(tiny_config()), [[1, 2]], num_beams=2, max_new_tokens=64, stop_ids=())
