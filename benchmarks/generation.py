"""Tokens per second of generation on a CPU, beside transformers' generate on the same weights.

python -m benchmarks.generation [--rows 1 8 32] [--tokens 64] [--rounds 3]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import model
from config import GPTConfig

PROMPT_TOKENS = 32
SAMPLED: dict[str, Any] = dict(temperature=0.8, top_p=0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32], help="texts at a time")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved repeats, of which the median counts")
    options = parser.parse_args()
    config = GPTConfig(
        preset="llama", vocab_size=8192, num_layers=6, hidden_size=256, num_heads=4, num_kv_heads=4, max_positions=512
    )
    ours: Any = model.build(config)
    model.init_weights(ours, config, seed=0)
    with torch.no_grad():
        ours.lm_head.weight.mul_(8)  # as sure of its tokens as a trained model
    theirs = exported(ours.eval())
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {PROMPT_TOKENS} tokens read, {options.tokens} written"
    )
    print("| tokens/s | " + " | ".join(f"{rows} texts" for rows in options.rows) + " |")
    print("| --- " * (len(options.rows) + 1) + "|")
    prompts = {rows: torch.randint(config.vocab_size, (rows, PROMPT_TOKENS)) for rows in options.rows}
    ragged = {rows: [p[row % PROMPT_TOKENS :].tolist() for row, p in enumerate(prompts[rows])] for rows in options.rows}
    tokens = options.tokens
    peers: dict[str, Callable[[int], object]] = {
        "Groundwork, greedy": lambda rows: model.generate(ours, prompts[rows], max_new_tokens=tokens, temperature=0),
        "Groundwork, greedy, prompts of several lengths": lambda rows: model.generate(
            ours, ragged[rows], max_new_tokens=tokens, temperature=0
        ),
        "transformers, greedy": lambda rows: theirs(prompts[rows], max_new_tokens=tokens, do_sample=False),
        "Groundwork, top_p 0.95": lambda rows: model.generate(
            ours, prompts[rows], max_new_tokens=tokens, seed=0, **SAMPLED
        ),
        "transformers, top_p 0.95": lambda rows: theirs(
            prompts[rows], max_new_tokens=tokens, do_sample=True, top_k=0, **SAMPLED
        ),
    }  # fmt: skip
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.rounds):
        for name, peer in peers.items():
            for rows in options.rows:
                start = time.perf_counter()
                peer(rows)
                seconds.setdefault((name, rows), []).append(time.perf_counter() - start)
    for name in peers:
        speeds = (rows * tokens / statistics.median(seconds[name, rows]) for rows in options.rows)
        print(f"| {name} | " + " | ".join(f"{speed:,.0f}" for speed in speeds) + " |")


def exported(ours: model.Model) -> Callable[..., Tensor]:
    """transformers' generate on the folder that our weights are exported to; it never stops before its length."""
    from transformers import AutoModelForCausalLM

    with TemporaryDirectory() as folder:
        model.save_hf(folder, ours.config, ours.state_dict(), token_ids={"eos_token_id": 0})
        theirs = AutoModelForCausalLM.from_pretrained(folder).eval()

    def generate(prompts_BT: Tensor, **settings: object) -> Tensor:
        mask_BT = torch.ones_like(prompts_BT)
        return theirs.generate(prompts_BT, attention_mask=mask_BT, eos_token_id=None, pad_token_id=0, **settings)

    return generate


if __name__ == "__main__":
    main()
