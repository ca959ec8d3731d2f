"""/classify, against what validation computes of the same examples."""

import json
import math
import random

import httpx
import pytest
import torch

from config import BertConfig, GPTConfig, RunConfig
from config.supervised_schema import Labelled
from data.examples import examples_tokenizer, open_held_out_examples
from data.tokenizer import byte_tokenizer
from engine.objective import choose_objective
from engine.scores import predictions
from model import build, set_task_head
from tasks.checkpoints import Trained
from tasks.serve.served import Served
from tests.tasks.serving import SIZES, decoder, filled, serving

LABELS = ["I-A", "B-A", "O"]
TASKS = {
    "classification": ("bert", {"labels": LABELS}),
    "pair": ("bert", {"name": "classification", "labels": LABELS}),
    "decoder": ("gpt", {"name": "classification", "labels": LABELS}),
    "regression": ("bert", {"mean": 2.0, "scale": 3.0}),
    "token_classification": ("bert", {"labels": LABELS}),
    "relation": ("bert", {"labels": LABELS}),
}
WORDS = ["the", "naïve", "model", "reads", "café", "tokens.", "🙂", "a"]


def example(task: str, draw: random.Random) -> dict:
    words = draw.choices(WORDS, k=draw.randint(1, 5))
    text, label = " ".join(words), draw.choice(LABELS)
    match task:
        case "pair":
            return {"text": text, "second": " ".join(draw.choices(WORDS, k=2)), "label": label}
        case "regression":
            return {"text": text, "label": round(draw.uniform(-3, 5), 2)}
        case "token_classification":
            return {"text": words, "label": (["O", "B-A", "I-A", "I-A", "B-A"] * 2)[draw.randrange(2) :][: len(words)]}
        case "relation":
            return {"text": f"[E1]{words[0]}[/E1] {text} [E2]x[/E2]", "label": label}
    return {"text": text, "label": label}


def tuned(folder, task: str, truncate: bool = False) -> tuple[Served, list[dict]]:
    """A model with a task's head and random weights, and examples of the task in its recipe's file."""
    family, settings = TASKS[task]
    examples = [example(task, random.Random(number)) for number in range(24)]
    (folder / "valid.jsonl").write_text("".join(json.dumps(one) + "\n" for one in examples))
    byte_tokenizer().save(folder / "tokenizer.json")
    file = str(folder / "valid.jsonl")
    fields = {"train": file, "valid": file, "tokenizer": str(folder / "tokenizer.json"), "truncate": truncate}
    if task == "pair":
        fields["pair"] = "second"
    config = (
        BertConfig(vocab_size=265, max_positions=128, pooler=False, dropout=0, **SIZES)
        if family == "bert"
        else GPTConfig(vocab_size=257, max_positions=128, **SIZES)
    )
    recipe = RunConfig.model_validate(
        {
            "run": {"folder": str(folder), "start_from": "none"},
            "data": {"examples": fields, "row_length": 96},
            "batch": {"global_batch_size": 5, "micro_batch_size": 5},
            "model": config.model_dump(),
            "objective": {"name": task, **settings},
            "optimizer": {"lr": 1e-3},
            "schedule": {"steps": 1},
        }
    )
    model = build(config)
    set_task_head(model, recipe.objective)
    trained = Trained(filled(config, model), examples_tokenizer(recipe), config, recipe.objective, recipe)
    return Served("tuned", trained, folder), examples


@torch.no_grad()
def validated(served: Served) -> tuple[list[list[float]], float]:
    """What validation predicts for each target of each example, and its whole loss."""
    objective, found, total = choose_objective(served.trained.objective), [], 0.0
    for batch in open_held_out_examples(served.trained.recipe):
        (loss,) = objective(served.trained.model, batch, torch.device("cpu")).values()
        found += [predicted.tolist() for predicted, _ in predictions(batch, loss)]
        total += loss.total.item()
    return found, total


def ask(url: str, given, **options) -> httpx.Response:
    return httpx.post(f"{url}/classify", json={"model": "tuned", "input": given, **options}, timeout=30)


def asked(task: str, one: dict):
    return [one["text"], one["second"]] if task == "pair" else one["text"]


@pytest.mark.parametrize("task", TASKS)
def test_served_labels_are_those_of_validation(tmp_path, task):
    served, examples = tuned(tmp_path, task)
    expected, total = validated(served)
    with serving(served) as url:
        answer = ask(url, [asked(task, one) for one in examples]).raise_for_status().json()
        alone = ask(url, [asked(task, examples[7])]).json()["data"][0]
    assert [item["index"] for item in answer["data"]] == list(range(24))
    assert alone.keys() == answer["data"][7].keys() and answer["usage"]["total_tokens"] > 24 * 3
    if task == "regression":
        assert [item["score"] for item in answer["data"]] == pytest.approx([one for (one,) in expected], abs=1e-5)
        return
    loss = 0.0
    for item, one, predicted in zip(answer["data"], examples, expected, strict=True):
        parts = item["words"] if task == "token_classification" else [item]
        right = one["label"] if task == "token_classification" else [one["label"]]
        assert item["num_classes"] == 3
        assert [part["label"] for part in parts] == [LABELS[int(number)] for number in predicted]
        for part, label in zip(parts, right, strict=True):
            assert math.isclose(sum(part["probs"]), 1, rel_tol=1e-9)
            loss -= math.log(part["probs"][LABELS.index(label)])
    assert loss == pytest.approx(total, rel=1e-5)
    assert isinstance(served.trained.objective, Labelled)


def test_words_are_told_apart_by_spaces_or_as_a_list(tmp_path):
    served, _ = tuned(tmp_path, "token_classification")
    with serving(served) as url:
        by_text, by_list, odd = (
            ask(url, ["the naïve  model"]).json(),
            ask(url, [["the", "naïve", "model"]]).json(),
            None,
        )
        assert by_text["data"] == by_list["data"]
        odd = ask(url, [["the", "", "model"]])
        assert odd.status_code == 400 and "input[0] has an empty text" in odd.json()["error"]["message"]
        assert ask(url, "   ").status_code == 400


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("classification", "", "input has an empty text"),
        ("classification", [], "input must be a text, a list of texts, or a list of pairs"),
        ("classification", [1, 2], "input must be a text, a list of texts"),
        ("classification", [["a", "b"]], "input[0] is a list, and this model judges single texts"),
        ("classification", "x" * 200, "maximum context length is 96 tokens, but input has 202 tokens (truncate=true cuts it off)"),
        ("classification", ["a"] * 2049, "2049 entries, more than 2048"),
        ("pair", ["a", "b"], 'input[0] is no pair, and this model judges pairs: send [["first text", "second text"], …]'),
        ("pair", [["a", "b", "c"]], "input[0] is no pair"),
        ("relation", ["Ada met Charles"], "input[0]: [E1] stands 0 times in its text"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_refused_with_the_reason(tmp_path, task, given, message):
    served, _ = tuned(tmp_path, task)
    with serving(served) as url:
        refused = ask(url, given)
    assert refused.status_code == 400 and message in refused.json()["error"]["message"], refused.text
    assert refused.json()["error"]["param"] == "input"


def test_too_long_texts_are_cut_if_training_or_the_request_says_so(tmp_path):
    served, _ = tuned(tmp_path, "classification", truncate=True)
    with serving(served) as url:
        cut = ask(url, "x" * 200).json()
        assert cut["usage"]["prompt_tokens"] == 96
        assert cut["data"] == ask(url, "x" * 94).json()["data"]
        assert ask(url, "x" * 200, truncate=False).status_code == 400
        models = httpx.get(f"{url}/v1/models").json()["data"][0]
    assert models["capabilities"] == ["embeddings", "classification"] and models["labels"] == LABELS


def test_a_model_without_labels_and_a_wrong_name_say_so(tmp_path):
    with serving(decoder()) as url:
        refused = httpx.post(f"{url}/classify", json={"model": "tiny-gpt", "input": "a"})
        assert refused.status_code == 400 and "has no labels: serve a run of" in refused.json()["error"]["message"]
        unknown = httpx.post(f"{url}/classify", json={"model": "other", "input": "a"})
        assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
    with serving(decoder(), keys=("secret",)) as url:
        assert httpx.post(f"{url}/classify", json={"model": "tiny-gpt", "input": "a"}).status_code == 401
