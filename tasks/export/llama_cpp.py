"""Whether llama.cpp computes with a GGUF file what our model computes.

Letters: T row length, V vocabulary.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import CheckpointError
from tasks.checkpoints import Trained
from tasks.export.check import TEXTS

TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}
"""Largest difference of log-probabilities, by the matrices' dtype. What meets a matrix in bfloat16 is rounded to it."""
GELU_TOLERANCE = 1e-2
"""The same in fp32 with GPT-2's GELU, which llama.cpp looks up in a table in half precision."""
ROOT = Path(__file__).parents[2]
PROCESS = "tasks.export.llama_cpp_process"
SECONDS = 900
"""That llama.cpp may take to load a large file and answer."""
LENGTHS = (1, 7, 48)
"""Tokens of the prompts that are compared."""


def check_llama_cpp(path: Path, trained: Trained, dtype: str) -> float:
    """Largest difference between log-probabilities [V] of the token after random prompts in llama.cpp and here.

    Raises CheckpointError if it is above the tolerance, if texts become other tokens, or if llama.cpp fails.
    """
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(trained.tokenizer.vocab_size, (length,), generator=generator) for length in LENGTHS]
    rows = trained.config.vocab_size
    answers = _ask(
        path,
        [
            *(("tokenize", {"content": text, "add_special": True, "parse_special": False}) for text in TEXTS),
            *(("completion", _next_token(prompt_T.tolist(), rows)) for prompt_T in prompts),
        ],
    )
    for text, answer in zip(TEXTS, answers, strict=False):
        if answer["tokens"] != (expected := trained.tokenizer.encode(text)):
            raise CheckpointError(
                f"the export is refused: tokens of {text!r} are {answer['tokens']} in llama.cpp and {expected} here"
            )
    largest = 0.0
    for prompt_T, answer in zip(prompts, answers[len(TEXTS) :], strict=True):
        with torch.no_grad():
            expected_V = trained.model.logits(trained.model(prompt_T[None]))[0, -1].log_softmax(-1)
        largest = max(largest, (_log_probabilities(answer, rows) - expected_V).abs().max().item())
    tolerance = TOLERANCE[dtype] if trained.config.gated else max(TOLERANCE[dtype], GELU_TOLERANCE)
    if not largest <= tolerance:
        raise CheckpointError(
            f"the export is refused: log-probabilities of llama.cpp differ by {largest:.1e}, more than {tolerance:g}"
        )
    return largest


def _ask(path: Path, requests: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Answers of a llama.cpp that serves the file. Raises CheckpointError if it fails or takes over `SECONDS`."""
    command = [sys.executable, "-m", PROCESS, str(path.resolve()), str(max(LENGTHS) + 16)]
    try:
        done = subprocess.run(
            command, input=json.dumps(requests), capture_output=True, text=True, timeout=SECONDS, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"the export is refused: llama.cpp did not answer for {path.name} in {SECONDS} s"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CheckpointError(f"the export is refused: llama.cpp cannot use {path.name}: {last}")
    return json.loads(done.stdout)


def _next_token(prompt: list[int], vocab_size: int) -> dict[str, Any]:
    """Request for the probability of each token after a prompt."""
    return {"prompt": prompt, "n_predict": 1, "n_probs": vocab_size, "cache_prompt": False, "temperature": 0}


def _log_probabilities(answer: dict[str, Any], vocab_size: int) -> Tensor:
    """Of each token [V]."""
    log_probabilities_V = torch.full((vocab_size,), -torch.inf)
    for token in answer["completion_probabilities"][0]["top_logprobs"]:
        log_probabilities_V[token["id"]] = token["logprob"]
    return log_probabilities_V
