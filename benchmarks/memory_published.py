"""Published peaks of memory against the plan's, for runs that others made (memory.py prints the table).

Where a run differs from what a recipe can say, the difference is counted by hand: a head that holds all logits at once,
in bf16 and fp32 with both gradients (12 bytes), and a policy that keeps every second matrix product of a block.
"""

from dataclasses import dataclass

from config import RunConfig, load_recipe
from config.activations import Activations
from config.block_memory import Arithmetic
from config.derive import derive
from config.device import DeviceInfo
from config.ds_json import deepspeed_json
from config.memory import FRAGMENTATION, estimate_memory
from config.zero_memory import States

GIB = 2**30
GPU = DeviceInfo("gpu", "a GPU", fast_bf16=True, fp16=True)
ALL_LOGITS = 12
TITAN = "pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md"
ZERO = "Rajbhandari et al., arXiv:1910.02054, table 1: model states"
NANOCHAT = "karpathy/nanochat: report of the depth-20 speedrun; discussion 8 for depth 32"
LLAMA_8B = (
    "model.num_kv_heads=8", "model.ffn_size=14336", "model.vocab_size=128256", "model.max_positions=262144",
)  # fmt: skip
GPT_7_5B = (
    "model.preset=gpt2", "model.num_layers=36", "model.hidden_size=4096", "model.num_heads=32", "model.vocab_size=50304",
    "model.ffn_size=16384", "model.max_positions=1024", "data.row_length=1024",
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    name: str
    source: str
    gib: float
    ranks: int
    overrides: tuple[str, ...]
    micro: int
    length: int
    compiled: bool = True
    logit_bytes: int = ALL_LOGITS
    half_of_products: bool = False
    """Of each block every second product is computed again: those of keys, the attention's output and the second of F."""
    bf16_residual: bool = False
    """Although the weights are fp32."""
    readers: int = 0
    """Groups of ranks that read rows; 0: each rank for itself."""
    steps_rows: int = 0
    """Rows of a step; 0: no accumulation."""

    def config(self) -> RunConfig:
        rows = self.steps_rows or self.micro * (self.readers or self.ranks)
        batch = (f"batch.micro_batch_size={self.micro}", f"batch.global_batch_size={rows}")
        return load_recipe("llama_7b", [*self.overrides, *batch, f"data.row_length={self.length}"])


def nanochat(depth: int, micro: int, gib: float) -> Published:
    """256 rows a step. fp32 weights and gradients, sharded moments; its residual stream is bf16 and its compiled loss fuses
    the fp32 logits away."""
    heads = (f"model.num_heads={depth // 2}", f"model.num_kv_heads={depth // 2}", "model.qk_norm=true")
    size = (f"model.num_layers={depth}", f"model.hidden_size={64 * depth}", f"model.ffn_size={256 * depth}")
    other = ("model.activation=relu2", "model.vocab_size=65536", "engine.ds_config=zero1", "optimizer.name=muon",
             "engine.activation_checkpointing=none")  # fmt: skip
    name = f"nanochat depth {depth}, {micro} x 2048"
    return Published(
        name, NANOCHAT, gib, 8, (*size, *heads, *other, "engine.precision=bf16_autocast"), micro, 2048, logit_bytes=4,
        steps_rows=256, bf16_residual=True,
    )  # fmt: skip


def titan(name: str, gib: float, ranks: int, micro: int, length: int, policy: str, **options) -> Published:
    groups = ranks // options.get("readers", ranks)
    engine = (f"engine.activation_checkpointing={policy}", f"engine.sequence_parallel={groups}")
    return Published(
        f"Llama 3.1 8B, {name}", TITAN, gib, ranks, (*LLAMA_8B, *engine), micro, length,
        half_of_products=policy == "selective", **options,
    )  # fmt: skip


RUNS = (
    titan("FSDP 8, 2 x 8192, selective", 82.4, 8, 2, 8192, "selective", compiled=False),
    titan("FSDP 8, 2 x 8192, selective, compiled", 77.0, 8, 2, 8192, "selective"),
    titan("FSDP 128, 2 x 8192, selective", 67.0, 128, 2, 8192, "selective", compiled=False),
    titan("FSDP 128, 2 x 8192, selective, compiled", 62.0, 128, 2, 8192, "selective"),
    titan("FSDP 8, 1 x 32768, full", 83.9, 8, 1, 32768, "full"),
    titan("FSDP 4 CP 2, 1 x 65536, full", 84.2, 8, 1, 65536, "full", readers=4),
    titan("FSDP 2 CP 4, 1 x 131072, full", 84.0, 8, 1, 131072, "full", readers=2),
    titan("FSDP 1 CP 8, 1 x 262144, full", 84.5, 8, 1, 262144, "full", readers=1),
    nanochat(20, 32, 75422 / 1024),
    nanochat(32, 8, 77018 / 1024),
)
STATES = ((1, 31.4), (2, 16.6), (3, 1.88))
"""ZeRO stage and GB of the states of 7.5 billion parameters on 64 GPUs."""


def predicted_gib(run: Published) -> float:
    config = run.config()
    derived = derive(config, run.ranks)
    ds_json = deepspeed_json(config, derived, config.engine.precision, GPU)
    memory = estimate_memory(config, derived, ds_json, device=GPU, compiled=run.compiled)
    theirs = run.logit_bytes * config.model.vocab_size * _tokens(config) - memory.device["logits and head"]
    if run.bf16_residual:
        low = Arithmetic(product=2, weight=2, gpu=True, compiled=run.compiled)
        theirs += Activations(config, low).kept() - memory.device["activations"]
    if run.half_of_products:
        theirs -= _recomputed_products(config)
    without_context = sum(memory.device.values()) - memory.device["CUDA and NCCL"]
    return (without_context + (1 + FRAGMENTATION["gpu"][1]) * theirs) / GIB


def _tokens(config: RunConfig) -> int:
    return config.batch.micro_batch_size * config.data.row_length // config.engine.sequence_parallel


def _recomputed_products(config: RunConfig) -> int:
    model = config.model
    numbers = model.kv_heads * model.head_width + model.hidden_size + model.ffn_width
    return 2 * numbers * model.num_layers * _tokens(config)


def states_gb(stage: int) -> float:
    """Model states of the ZeRO paper's 7.5B model, scaled from the nearest GPT-2 shape."""
    overrides = (*GPT_7_5B, f"engine.ds_config=zero{stage}", "batch.global_batch_size=64")
    config = load_recipe("llama_7b", overrides)
    derived = derive(config, 64)
    states = States(config, derived, deepspeed_json(config, derived, "bf16", GPU))
    gradients = states.kept_gradients() or states.number * (states.whole if stage == 1 else states.share)
    size = states.weights() + states.optimizer() + gradients
    return size / 1e9 * 7.5e9 / derived.parameters.total


def published_table() -> str:
    lines = ["| published run | predicted | published | error |", "|---|--:|--:|--:|"]
    for run in RUNS:
        ours = predicted_gib(run)
        lines.append(f"| {run.name} | {ours:.1f} GiB | {run.gib:.1f} GiB | {ours / run.gib - 1:+.0%} |")
    for stage, theirs in STATES:
        ours = states_gb(stage)
        lines.append(f"| 7.5B, ZeRO {stage} on 64, states | {ours:.2f} GB | {theirs} GB | {ours / theirs - 1:+.0%} |")
    return "\n".join([*lines, "", *dict.fromkeys(run.source for run in RUNS), ZERO])
