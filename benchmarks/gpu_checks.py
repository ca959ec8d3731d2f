"""Whether everything computes what it should on this device, and how long each attention kernel takes."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import gpu_peers, kernels
from benchmarks.gpu import Row
from benchmarks.gpu_clock import DEVICE, ON_GPU, first_line, seconds_of
from benchmarks.gpu_steps import COMMON, EAGER, TINY
from config import GPTConfig, load_recipe
from model.head import Head
from model.kernels import BACKENDS, Attend
from model.kernels.sdpa import attend_sdpa
from model.layout import Layout
from model.spec import AttentionSpec


def check_kernels(smoke: bool) -> Iterator[Row]:
    """Every backend and feature against the reference."""
    dtype = torch.bfloat16 if ON_GPU else torch.float32
    for cells in kernels.compare(DEVICE, dtype):
        yield dict(zip(("kernel", "attention", "output error", "gradient error"), cells, strict=True))


def time_kernels(smoke: bool) -> Iterator[Row]:
    """Forward and backward of each kernel on its own, at the sizes of the models whose steps are timed."""
    dtype = torch.bfloat16 if ON_GPU else torch.float32
    shapes = [(2, 64, 2, 16)] if smoke else [(32, 1024, 12, 64), (8, 2048, 16, 128)]
    specs = {"causal": AttentionSpec(), "two-sided window 128": AttentionSpec(causal=False, window=128)}
    for shape in shapes:
        for (name, spec), documents in [
            *((item, False) for item in specs.items()),
            (("documents", specs["causal"]), True),
        ]:
            for kernel, attend, prepare in _attends():
                yield _kernel_time(f"{name} {list(shape)}", kernel, attend, prepare, shape, spec, documents, dtype)


def _attends() -> Iterator[tuple[str, Attend, Any]]:
    """Kernels that are installed here, and SDPA held to each of its own."""
    for backend in BACKENDS:
        if backend.name == "reference" or (backend.gpus and not ON_GPU):
            continue
        try:
            yield backend.source if backend.name == "flash" else backend.name, backend.connect().attend, backend.prepare
        except (ImportError, AttributeError, OSError, RuntimeError):
            continue
    for inner in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):

        def attend(*qkv: Tensor, inner: SDPBackend = inner, **options: Any) -> Tensor:
            with sdpa_kernel(inner):
                return attend_sdpa(*qkv, **options)

        yield f"sdpa, {inner.name.lower()}", attend, BACKENDS[-2].prepare


def _kernel_time(
    name: str, kernel: str, attend: Attend, prepare: Any, shape: Any, spec: AttentionSpec, documents: bool, dtype: Any
) -> Row:
    rows, length = shape[:2]
    q, k, v = (torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=True) for _ in range(3))
    gradient = torch.randn_like(q)
    bounds = [*range(0, rows * length, 300), rows * length]
    layout = Layout.from_cu_seqlens(bounds, rows, length, DEVICE) if documents else None
    layout = prepare(spec, q, layout, None)

    def both() -> None:
        out = attend(q, k, v, spec=spec, layout=layout, dropout=0.0)
        torch.autograd.grad(out, (q, k, v), gradient)

    try:
        both()
        return {"kernel": kernel, "attention": name, "forward + backward, ms": 1e3 * seconds_of(both, 10)}
    except Exception as error:  # whatever a kernel raises belongs into the table
        return {"kernel": kernel, "attention": name, "problem": first_line(error)}


def check_loss(smoke: bool) -> Iterator[Row]:
    """The chunked loss against F.cross_entropy of all logits in float32."""
    tokens, width, vocabulary = (64, 32, 128) if smoke else (8192, 768, 50304)
    config = GPTConfig(vocab_size=vocabulary, num_layers=1, hidden_size=width, num_heads=2)
    with DEVICE:
        head = Head(config, chunk_tokens=tokens // 4)
        torch.nn.init.normal_(head.weight, std=0.02)
        hidden = torch.randn(1, tokens, width, requires_grad=True)
        labels = torch.randint(vocabulary, (1, tokens))
    plain = F.cross_entropy(F.linear(hidden, head.weight).flatten(0, 1), labels.flatten(), reduction="sum")
    truth = [plain, *torch.autograd.grad(plain, (hidden, head.weight))]
    for in_bf16 in (False, True):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=in_bf16):
            total = head(hidden, labels).total
        found = [total, *torch.autograd.grad(total, (hidden, head.weight))]
        names = ("loss", "gradient of hidden", "gradient of weight")
        row = {
            name: ((a - b).abs().max() / b.abs().max()).item() for name, a, b in zip(names, found, truth, strict=True)
        }
        yield {"chunked loss, relative error": "bf16" if in_bf16 else "fp32", **row}


def check_parity(smoke: bool) -> Iterator[Row]:
    """Losses of five steps under DeepSpeed ZeRO 1 and in plain PyTorch."""
    size = [*TINY, "batch.micro_batch_size=2"] if smoke else ["model.num_layers=4", "batch.micro_batch_size=8"]
    size += ["batch.global_batch_size=8", EAGER]
    for precision in ("fp32", "bf16_autocast"):
        config = load_recipe("gpt2_124m", [*COMMON, *size, f"engine.precision={precision}"])
        losses = {}
        for name, peer in (("ZeRO 1", gpu_peers.groundwork), ("plain torch", gpu_peers.plain_torch)):
            step = peer(config)
            losses[name] = [float(step()) for _ in range(5)]
        pairs = list(zip(*losses.values(), strict=True))
        yield {
            "precision": precision,
            **{name: " ".join(f"{loss:.4f}" for loss in values) for name, values in losses.items()},
            "largest difference": max(abs(a - b) for a, b in pairs),
        }
