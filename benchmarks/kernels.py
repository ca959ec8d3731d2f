"""Every attention kernel of this machine against the reference, feature by feature: python -m benchmarks.kernels

Largest error of the output and of the gradients, relative to the largest value of each. fp32 on a CPU, bf16 on a GPU.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from model.kernels import BACKENDS, Attend
from model.kernels.reference import attend_reference
from model.layout import Layout
from model.spec import AttentionSpec

ROWS, QUERIES, KEYS, HEADS = 2, 192, 160, 4
BOUNDARIES = [0, 5, 150, 192, 193, 300, 384]
"""Of documents, over both rows."""
CAUSAL, BIDIRECTIONAL = AttentionSpec(), AttentionSpec(causal=False)


@dataclass(frozen=True)
class Case:
    """One kind of attention. A kernel that has its features must compute it."""

    name: str
    spec: AttentionSpec = CAUSAL
    features: tuple[str, ...] = ()
    documents: bool = False
    kv_heads: int = HEADS
    padded_keys: bool = False
    """Of cross-attention, whose keys are other tokens."""

    @property
    def cross(self) -> bool:
        return "cross" in self.features

    def inputs(self, device: torch.device, dtype: torch.dtype, size: int) -> list[Tensor]:
        """q, k, v and, if the case has one, the bias, of head size `size`."""
        generator = torch.Generator().manual_seed(0)
        keys = KEYS if self.cross else QUERIES
        shapes: list[tuple[int, ...]] = [(ROWS, QUERIES, HEADS, size), *[(ROWS, keys, self.kv_heads, size)] * 2]
        shapes += [(HEADS, QUERIES, keys)] if "bias" in self.features else []
        return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]

    def layouts(self, device: torch.device) -> dict[str, Layout | None]:
        documents = Layout.from_cu_seqlens(BOUNDARIES, ROWS, QUERIES, device) if self.documents else None
        keys = Layout.padded([KEYS, 90], KEYS, device) if self.padded_keys else None
        return {"layout": documents, "keys": keys}


_bidirectional = partial(Case, spec=BIDIRECTIONAL)
CASES = (
    Case("causal"),
    Case("grouped heads", kv_heads=2),
    Case("documents", documents=True, kv_heads=2),
    _bidirectional("bidirectional", features=("bidirectional",)),
    _bidirectional("bidirectional documents", features=("bidirectional",), documents=True),
    Case("window", AttentionSpec(window=17), ("window",), kv_heads=2),
    Case("window in documents", AttentionSpec(window=17), ("window",), documents=True),
    Case("two-sided window", AttentionSpec(causal=False, window=16), ("window", "bidirectional")),
    Case("two-sided in documents", AttentionSpec(causal=False, window=16), ("window", "bidirectional"), documents=True),
    Case("softcap", AttentionSpec(softcap=2.0), ("softcap",), kv_heads=2),
    Case("softcap in documents", AttentionSpec(softcap=2.0), ("softcap",), documents=True),
    Case("scale", AttentionSpec(scale=0.3), ("scale",)),
    Case("bias", AttentionSpec(scale=0.3), ("scale", "bias")),
    Case("bias in documents", AttentionSpec(causal=False), ("bias", "bidirectional"), documents=True, kv_heads=2),
    _bidirectional("cross", features=("bidirectional", "cross")),
    _bidirectional("cross, padded keys", features=("bidirectional", "cross"), padded_keys=True, kv_heads=2),
)


def results(attend: Attend, case: Case, inputs: list[Tensor], backward: bool, **layouts: Layout | None) -> list[Tensor]:
    """Output and, for a fixed gradient of it, the gradients of the inputs."""
    q, k, v, *bias = inputs
    with torch.set_grad_enabled(backward):
        out = attend(q, k, v, spec=case.spec, dropout=0.0, bias_HTS=bias[0] if bias else None, **layouts)
    if not backward:
        return [out]
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    return [out, *torch.autograd.grad((out.float() * weights).sum(), inputs)]


def errors(
    attend: Attend, case: Case, device: torch.device, dtype: torch.dtype, size: int = 64, backward: bool = True
) -> list[float]:
    """Largest differences from the float32 reference of the output and of dq, dk, dv, dbias, each relative to its
    largest value or, if that is less, 1."""
    inputs, layouts = case.inputs(device, dtype, size), case.layouts(device)
    actual = results(attend, case, inputs if backward else [x.detach() for x in inputs], backward, **layouts)
    exact = [x.detach().float().requires_grad_() for x in inputs]
    truth = results(attend_reference, case, exact, backward, **layouts)
    return [
        ((ours.float() - theirs).abs().max() / theirs.abs().max().clamp_min(1)).item()
        for ours, theirs in zip(actual, truth, strict=True)
    ]


def compare(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, str, str, str]]:
    """(kernel, attention, error of the output, largest error of a gradient) of each backend and case."""
    for backend in sorted(BACKENDS, key=lambda backend: backend.name == "flex"):  # which compiles, so it comes last
        name = f"{backend.source} ({backend.name})"
        if backend.gpus and backend.name != "flex" and device.type == "cpu":
            yield name, "", "needs a GPU", ""
            continue
        try:
            attend, features = backend.connect()
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            yield name, "", f"not usable: {error}", ""
            continue
        backward = backend.name != "flex" or device.type != "cpu"
        for case in CASES:
            if lacking := set(case.features) - features:
                yield name, case.name, f"no {', '.join(sorted(lacking))}", ""
            else:
                yield name, case.name, *_errors_in_words(attend, case, device, dtype, backward)


def _errors_in_words(
    attend: Attend, case: Case, device: torch.device, dtype: torch.dtype, backward: bool
) -> tuple[str, str]:
    try:
        output, *gradients = errors(attend, case, device, dtype, backward=backward)
    except Exception as error:  # whatever a kernel raises belongs into the table
        return f"**{type(error).__name__}: {str(error).splitlines()[0][:80]}**", ""
    return f"{output:.1e}", f"{max(gradients):.1e}" if gradients else "no backward"


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__).parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    print(
        f"torch {torch.__version__}, {device.type}, {dtype}\n\n| kernel | attention | output | gradients |\n|---|---|---|---|"
    )
    for cells in compare(device, dtype):
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
