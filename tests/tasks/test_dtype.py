"""--dtype: models in bfloat16 compute nearly what they do in float32, and their answers are float32."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from config import ConfigError
from model import generate
from model.rows import CachedRows
from tasks.__main__ import main
from tasks.checkpoints import load_model
from tasks.embedding import Embedder
from tests.model.tiny import tiny_config, tiny_t5
from tests.tasks.hugging_face import BERT, save
from tests.tasks.serving import serving
from tests.tasks.test_serve_classify import LABELS, ask, asked, tuned
from tests.tasks.trained import save_folder, tiny_trained

CPU = torch.device("cpu")
TEXTS = ["", "a text", "another, quite a bit longer than the first", "é"]


def test_vectors_are_float32_and_near_those_of_float32(tmp_path):
    save(tmp_path / "model", transformers.BertModel, BERT)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[1:]))
    low = load_model(tmp_path / "model", CPU, torch.bfloat16)
    assert {weight.dtype for weight in low.model.state_dict().values()} == {torch.bfloat16}
    vector_ND = Embedder(low).encode(TEXTS[1:])
    expected_ND = Embedder(load_model(tmp_path / "model", CPU)).encode(TEXTS[1:])
    assert vector_ND.dtype == torch.float32
    assert torch.cosine_similarity(vector_ND, expected_ND).min() >= 0.999
    assert not torch.equal(vector_ND, expected_ND)
    files = [str(tmp_path / name) for name in ("model", "texts.txt")]
    assert main(["embed", *files, "--out", str(tmp_path / "out.npy"), "--dtype", "bfloat16"]) == 0
    written_ND = np.load(tmp_path / "out.npy")
    assert written_ND.dtype == np.float32 and np.abs(written_ND - vector_ND.numpy()).max() <= 1e-6


@pytest.mark.parametrize("config", [tiny_config(vocab_size=257), tiny_t5(vocab_size=358)], ids=["gpt", "t5"])
def test_text_is_written_with_a_cache_of_the_same_numbers(config, tmp_path):
    """Prompts of several lengths, so that there is padding to be masked."""
    save_folder(tiny_trained(config), tmp_path)
    prompts, found = [[5], [7, 8, 9, 10, 11], [3, 3]], []
    for dtype in (torch.float32, torch.bfloat16):
        model: Any = load_model(tmp_path, CPU, dtype).model
        rows = CachedRows(model)
        with torch.no_grad():
            first_BV = rows.read(prompts, prompts if config.family == "t5" else [])
            second_BV = rows.advance(torch.tensor([1, 2, 3]))
        assert rows.cache.keys.dtype == rows.cache.values.dtype == dtype
        found.append(torch.cat([first_BV, second_BV]).float().log_softmax(-1))
        sources = prompts if config.family == "t5" else None
        written = generate(model, prompts, sources=sources, max_new_tokens=6, temperature=0.0)
        assert [len(tokens) for tokens in written.new_tokens] == [6, 6, 6]
    difference_BV = (found[0] - found[1]).abs()
    assert 0 < difference_BV.mean() <= 0.03 and difference_BV.max() <= 0.2


@pytest.mark.parametrize("task", ["classification", "regression", "token_classification"])
def test_labels_are_nearly_as_probable(task, tmp_path):
    served, examples = tuned(tmp_path, task)
    given, answers = [asked(task, one) for one in examples], []
    for dtype in (torch.float32, torch.bfloat16):
        served.trained.model.to(dtype)
        with serving(served) as url:
            answers.append(ask(url, given).raise_for_status().json()["data"])
    for expected, actual in zip(*answers, strict=True):
        if task == "regression":
            assert actual["score"] == pytest.approx(expected["score"], abs=0.2)
            continue
        parts = [item["words"] if task == "token_classification" else [item] for item in (expected, actual)]
        for wanted, part in zip(*parts, strict=True):
            assert part["probs"] == pytest.approx(wanted["probs"], abs=0.05) and len(part["probs"]) == len(LABELS)
            assert sum(part["probs"]) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("command", ["serve", "embed", "generate", "evaluate"])
def test_what_cannot_be_computed_with_is_refused(command, tmp_path, capsys):
    more = {"embed": ["in.txt", "--out", str(tmp_path / "out.npy")], "generate": ["--prompt", "a"]}
    with pytest.raises(SystemExit):
        main([command, str(tmp_path), "--dtype", "int8", *more.get(command, [])])
    assert "'float32', 'bfloat16', 'float16'" in capsys.readouterr().err


def test_a_cpu_does_not_compute_in_float16(tmp_path):
    with pytest.raises(ConfigError, match="gains nothing over float32 on a CPU: use bfloat16"):
        load_model(tmp_path, CPU, torch.float16)


def test_an_evaluation_says_what_it_was_computed_in(tmp_path, capsys):
    save_folder(tiny_trained(tiny_config(vocab_size=257)), tmp_path / "model")
    (tmp_path / "text.txt").write_text("A text of some words. " * 10)
    text, bits = ["evaluate", str(tmp_path / "model"), "--text", str(tmp_path / "text.txt"), "--window", "16"], []
    for dtype in ("float32", "bfloat16"):
        assert main([*text, "--dtype", dtype, "--out", str(tmp_path / dtype)]) == 0
        report = json.loads((tmp_path / dtype / "evaluation.json").read_text())
        assert report["dtype"] == dtype and dtype in (tmp_path / dtype / "evaluation.html").read_text()
        bits.append(report["results"][0]["metrics"]["bits_per_byte"])
    assert bits[0] != bits[1] == pytest.approx(bits[0], rel=0.01)
