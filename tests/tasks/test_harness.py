"""lm-evaluation-harness on our model against its own Hugging Face model with the same weights, on local tasks."""

import json
import re

import pytest
import torch

from config import ConfigError
from tests.model.tiny import tiny_config
from tests.tasks.trained import save_folder, tiny_trained

lm_eval = pytest.importorskip("lm_eval")
QUESTIONS = [
    {"question": f"What is {a} plus {b}?", "choices": [str(a + b), str(a), "naïve"], "answer": 0, "text": "1 2 3 " * a}
    for a, b in ((1, 2), (7, 5), (20, 3), (4, 4))
]
COMMON = "dataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}\ntest_split: test\n"
TASKS = {
    "choosing": """task: choosing
output_type: multiple_choice
doc_to_text: "{{question}} Answer:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "reading": """task: reading
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
""",
    "writing": """task: writing
output_type: generate_until
doc_to_text: "{{question}} Answer:"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder of task files with their data; everything that `datasets` caches stays beside it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(COMMON.format(file=folder / "data.jsonl") + text)
    return folder


@pytest.fixture
def trained():
    return tiny_trained(tiny_config("qwen3", vocab_size=320))


def test_numbers_are_those_of_the_harness_own_model(trained, tasks, tmp_path):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from tasks.evaluation.harness import run_tasks

    (tasks / "both.yaml").write_text("group: both\ntask: [choosing, reading]\n")
    results = run_tasks(trained, torch.device("cpu"), ["both", "writing"], folder=tasks)
    heads = {"choosing": "acc", "reading": "word_perplexity", "writing": "exact_match"}
    assert {result.source: result.headline for result in results} == heads  # the group has no number of its own
    ours = {result.source: result.metrics for result in results}
    assert all(metrics["examples"] == len(QUESTIONS) for metrics in ours.values())
    theirs = lm_eval.simple_evaluate(
        HFLM(str(save_folder(trained, tmp_path / "hf")), device="cpu", batch_size=2, max_length=64, dtype="float32"),
        tasks=list(TASKS), task_manager=TaskManager(include_path=tasks, include_defaults=False), bootstrap_iters=0,
    )["results"]  # fmt: skip
    for task, names in {"choosing": ("acc", "acc_norm"), "reading": ("bits_per_byte", "word_perplexity")}.items():
        for name in names:
            assert ours[task][name] == pytest.approx(theirs[task][f"{name},none"], rel=1e-5), (task, name)
    assert ours["writing"]["exact_match"] == theirs["writing"]["exact_match,none"]


def test_requests_are_answered_as_by_the_harness_own_model(trained, tmp_path):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from tasks.evaluation.harness import HarnessModel

    ours = HarnessModel(trained, torch.device("cpu"))
    theirs = HFLM(
        str(save_folder(trained, tmp_path / "hf")), device="cpu", batch_size=1, max_length=64, dtype="float32"
    )
    pairs = [("The model", " reads"), ("", "a row of tokens"), ("ends in a space ", "x"), ("long " * 30, "context")]
    instances = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    for one, other in zip(ours.loglikelihood(instances), theirs.loglikelihood(instances), strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-5) and one[1] == other[1]
    texts = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("short", "naïve 日本語 " * 20)]
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), rel=1e-5)
    prompts = ["The model", "long " * 30, *(f"{n} tokens " * n for n in range(1, 6))]
    settings = {"until": ["\n\n"], "max_gen_toks": 10, "do_sample": False}
    writing = [Instance("generate_until", {}, (text, settings), 0) for text in prompts]
    free = theirs.generate_until(writing)
    assert ours.generate_until(writing) == free
    ending = settings | {"until": [two for text in free for two in re.findall("[!-~]{2}", text)[:1]]}
    writing = [Instance("generate_until", {}, (text, ending), 0) for text in prompts]
    assert ours.generate_until(writing) == theirs.generate_until(writing) != free


def test_texts_are_the_same_however_many_are_written_together(trained, monkeypatch):
    from lm_eval.api.instance import Instance

    from tasks.evaluation import harness

    drawn = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5, "top_p": 0.9}
    requests = [Instance("generate_until", {}, (text, drawn), 0) for text in ("a", "a", "some more", "", "b" * 80)]
    model = harness.HarnessModel(trained, torch.device("cpu"))
    together = model.generate_until(requests)
    assert len(set(together)) == len(requests)
    monkeypatch.setattr(harness, "PROMPTS", 1)
    assert model.generate_until(requests) == together


def test_what_the_harness_cannot_do_is_said(trained, tasks):
    from lm_eval.api.instance import Instance

    from tasks.evaluation.harness import HarnessModel, run_tasks

    with pytest.raises(ConfigError, match=r"no task 'chosing' in .*tasks \(3 there: choosing, reading, writing\)"):
        run_tasks(trained, torch.device("cpu"), ["chosing"], folder=tasks)
    model = HarnessModel(trained, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"up to 64 new tokens .* has 64 positions"):
        model.generate_until([Instance("generate_until", {}, ("a", {"max_gen_toks": 64}), 0)])
    with pytest.raises(ConfigError, match="generation_kwargs have num_beams, which our decoder does not"):
        model.generate_until([Instance("generate_until", {}, ("a", {"max_gen_toks": 6, "num_beams": 2}), 0)])
    with pytest.raises(ConfigError, match="a continuation of 65 tokens is longer than the model's 64 positions"):
        model._loglikelihood_tokens([(None, [1], [2] * 65)])
