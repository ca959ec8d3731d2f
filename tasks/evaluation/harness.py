"""Our causal models in lm-evaluation-harness: its tasks, its prompts, its metrics."""

import io
from collections import deque
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from config import ConfigError
from model import GPT
from model.decoder import Decoder, NewToken, Request
from model.generation import inference
from model.sampling import Sampling
from tasks.checkpoints import Trained
from tasks.evaluation.language import Window, score
from tasks.evaluation.result import Result
from tasks.text_stream import StopText, TextStream

PROMPTS = 32
"""Continued at the same time."""
MOST_NEW_TOKENS = 256
"""Where a task does not say, as in the harness's own models."""


class HarnessModel(TemplateLM):
    """Texts are tokenised without special tokens, and the end-of-document token comes first where there is no context."""

    def __init__(self, trained: Trained, device: torch.device):
        super().__init__()
        assert isinstance(trained.model, GPT)
        self.trained, self.network, self._device = trained, trained.model, device
        self.longest = trained.config.max_positions

    @property
    def eot_token_id(self) -> int:
        return self.trained.tokenizer.eod_id

    @property
    def tokenizer_name(self) -> str:
        """Names cached requests."""
        return self.trained.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.trained.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests: list, **kwargs: Any) -> list[tuple[float, bool]]:
        """Log probability of each continuation and whether it is the greedy one. Of a context that is too long, the
        beginning is left out. Raises ConfigError if a continuation alone is too long."""
        windows = []
        for _, context, continuation in requests:
            if len(continuation) > self.longest:
                raise ConfigError(
                    f"a continuation of {len(continuation):,} tokens is longer than the model's {self.longest:,} positions"
                )
            windows.append(Window([*context, *continuation][-(self.longest + 1) :], len(continuation)))
        scores = score(self.network, windows, self._device)
        return [(-float(found.nats_N.sum(dtype="float64")), bool(found.greedy_N.all())) for found in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log probability of whole texts, in the harness's disjoint windows."""
        windows, counts = [], []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            rolling = get_rolling_token_windows(tokens, self.prefix_token_id, max_seq_len=self.longest, context_len=1)
            windows += (mine := [(None, *make_disjoint_window(window)) for window in rolling])
            counts.append(len(mine))
        found = iter(self._loglikelihood_tokens(windows))
        return [sum(log_probability for log_probability, _ in islice(found, count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop text, `PROMPTS` at a time; greedy unless the task asks to draw. Of a prompt that leaves
        no room for them, the beginning is left out. Raises ConfigError for settings that our decoder does not have."""
        todo = deque((place, *self._request(place, *request.args)) for place, request in enumerate(requests))
        decoder, texts, written = Decoder(self.network), {}, {}
        with inference(self.network):
            while todo or len(decoder):
                while todo and len(decoder) < PROMPTS:
                    place, request, stop = todo.popleft()
                    (number,) = decoder.add(request)
                    out = io.StringIO()
                    texts[number] = place, out, TextStream(self.trained.tokenizer, out, stop)
                for new in decoder.step():
                    place, out, stream = texts[new.sequence]
                    if _is_last(new, stream):
                        decoder.remove(new.sequence)
                        stream.finish()
                        written[place] = out.getvalue()
        return [written[place] for place in range(len(requests))]

    def _request(self, place: int, context: str, given: dict[str, Any]) -> tuple[Request, list[str]]:
        """What the decoder is asked for the request at a place, and the stop texts."""
        settings = normalize_gen_kwargs(given, MOST_NEW_TOKENS)
        most, until, draw = (settings.pop(name) for name in ("max_gen_toks", "until", "do_sample"))
        if unknown := sorted(settings.keys() - {field.name for field in fields(Sampling)}):
            raise ConfigError(
                f"the task's generation_kwargs have {unknown[0]}, which our decoder does not: leave it out"
            )
        if most >= self.longest:
            raise ConfigError(
                f"the task asks for up to {most:,} new tokens (max_gen_toks), but the model has {self.longest:,} positions in "
                "all: lower max_gen_toks in the task's generation_kwargs"
            )
        sampling = Sampling(**settings | {"seed": place}) if draw else Sampling(temperature=0.0)
        prompt = (self.tok_encode(context) or [self.eot_token_id])[-(self.longest - most) :]
        return Request(prompt, None, most, (self.eot_token_id,), sampling), handle_stop_sequences(until, eos=None)


def _is_last(new: NewToken, stream: TextStream) -> bool:
    """Whether a token ends its text, which gets it otherwise."""
    if new.reason == "stop":
        return True
    try:
        stream.add(0, new.token)
    except StopText:
        return True
    return new.reason is not None


def run_tasks(
    trained: Trained,
    device: torch.device,
    tasks: list[str],
    *,
    folder: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
) -> list[Result]:
    """One result for each task of the harness, and for each group that has numbers of its own; `folder` holds task files
    (YAML) of one's own.

    Raises ConfigError if there is no such task, or for an impossible number of examples.
    """
    for option, value, least in (("limit", limit, 1), ("shots", shots, 0)):
        if value is not None and value < least:
            raise ConfigError(f"--{option} {value}: give at least {least}")
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        known = ", ".join(sorted(manager.all_tasks)[:10]) or "none"
        where = f"in {folder}" if folder else "in lm-eval; own ones need --harness-tasks FOLDER"
        raise ConfigError(f"no task {unknown[0]!r} {where} ({len(manager.all_tasks):,} there: {known})")
    found = simple_evaluate(
        HarnessModel(trained, device),
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        num_fewshot=shots,
        bootstrap_iters=0,
        log_samples=False,
    )
    assert found is not None
    results = [_result(name, dict(values), limit, shots) for name, values in found["results"].items()]
    return [result for result in results if result.metrics]


def _result(task: str, values: dict[str, Any], limit: int | None, shots: int | None) -> Result:
    """The harness names its numbers METRIC,FILTER and counts the examples as sample_len; a group may have no number."""
    numbers = {
        name.removesuffix(",none"): float(value)
        for name, value in values.items()
        if "," in name and "_stderr" not in name and isinstance(value, int | float)
    }
    examples = {"examples": values["sample_len"]} if numbers and "sample_len" in values else {}
    settings = {name: value for name, value in (("limit", limit), ("shots", shots)) if value is not None}
    return Result("harness", task, next(iter(numbers), ""), numbers | examples, settings)
