"""From a recipe to a running engine, with every automatic choice and its reason."""

from dataclasses import dataclass
from textwrap import fill

import torch

from config import Choice, RunConfig
from config.adapter_schema import adapter_parameters
from config.compiling import choose_compile
from config.count import FLOPS_CONVENTION
from config.derive import Derived, derive
from config.ds_config import read_ds_config
from config.ds_json import deepspeed_json, resolve_precision
from config.objective_schema import row_shape
from config.parallel import data_rank_and_size
from data import training
from data.batch import Batch
from engine.device import COMPUTE_DTYPE, choose_threads, device_info, hidden_gpu, peak_tflops
from engine.dist import World, from_main, together
from engine.engine import Engine
from engine.objective import add_temperature
from engine.ownership import Ownership
from engine.sequence_parallel import share_attention, share_rows
from engine.start_from import start_from
from engine.tensor_parallel import tensor_parallel_json
from engine.weights import fill_weights, sharded_construction
from model import Kernel, build, choose_kernel, compile_blocks, set_task_head
from model.adapters import add_adapter


@dataclass(frozen=True)
class Setup:
    """What was decided for this run on this machine."""

    derived: Derived
    device: str
    zero_stage: int
    precision: Choice[str]
    kernel: Choice[Kernel]
    compile: Choice[bool]
    threads: Choice[int]
    """Of this rank, on the CPU."""
    peak: Choice[float]
    """TFLOP/s of one device."""
    owners: list[Ownership]
    """Which update rule, rate and decay own which parameters."""
    weights: str
    """Where the first weights came from."""

    def describe(self, config: RunConfig) -> str:
        """The table printed once at the start."""
        derived, counts = self.derived, self.derived.parameters
        compiled = "on" if self.compile.value else "off"
        rows = {
            "model": f"{config.model.preset}, {counts.total:,} parameters ({counts.non_embedding:,} without embeddings)",
            "weights": fill(
                self.weights, 108, subsequent_indent=" " * 12, break_long_words=False, break_on_hyphens=False
            ),
            "adapter": f"{config.adapter.name}, {adapter_parameters(config.adapter, config.model):,} trained parameters; the "
            "model's own are frozen, but for a task's new head",
            "objective": f"{config.objective.name}, {row_shape(config.objective, config.data.row_length).text:,} tokens of text "
            f"in a row of {config.data.row_length:,}",
            "device": f"{derived.world_size} × {self.device}, ZeRO {self.zero_stage} ({config.engine.ds_config})",
            "precision": str(self.precision),
            "attention": str(self.kernel),
            "compile": f"{compiled} ({self.compile.reason})",
            "threads": str(self.threads),
            "optimizer": f"\n{'':12}".join(fill(str(owner), 108, subsequent_indent=" " * 14) for owner in self.owners),
            "batch": derived.batch_equation,
            "length": f"{config.schedule.steps:,} steps, {derived.total_tokens:,} tokens, "
            f"{derived.total_tokens / counts.total:.1f} tokens per parameter",
            "MFU": f"of {self.peak.value:g} TFLOP/s per device ({self.peak.reason}), {FLOPS_CONVENTION}",
        }
        if config.adapter.name == "none":
            del rows["adapter"]
        return "\n".join(f"{name:>10}  {text}" for name, text in rows.items())


def open_held_out(config: RunConfig, world: World) -> list[Batch]:
    """This rank's batches of the fixed validation rows; none if validation is off. Raises DataError on every rank."""
    rank, size = data_rank_and_size(config.engine, world.rank, world.size)
    return together(lambda: training.open_held_out(config, rank, size), world)


def build_engine(config: RunConfig, world: World, *, resuming: bool = False) -> tuple[Engine, Setup]:
    """Choose, build, initialise and wrap the model. Weights that are `resuming` come later, so `run.start_from` is not read.

    Raises ConfigError if the device cannot do what the recipe asks, or `run.start_from` holds another model.
    """
    info = device_info(world.device)
    precision = resolve_precision(config, info)
    derived = derive(config, world.size)
    ds_json = deepspeed_json(config, derived, precision.value, info)
    stage = read_ds_config(config.engine.ds_config).stage
    dtype = COMPUTE_DTYPE[precision.value]
    layouts = config.data.document_masking or row_shape(config.objective, config.data.row_length).padded
    kernel = choose_kernel(config.model, world.device, dtype, layouts, config.engine.kernel)
    shared = config.engine.sequence_parallel
    if shared > 1:
        kernel = share_attention(kernel, shared)
    compiled = choose_compile(config, derived, precision.value, info, stage)
    threads = choose_threads()
    torch.set_num_threads(threads.value)
    # Measured on one rank, so that all of them report the same figure.
    peak = from_main(peak_tflops(world.device, precision.value, config.monitor.peak_tflops) if world.is_main else None)
    if config.engine.tensor_parallel > 1:
        ds_json["tensor_parallel"] = tensor_parallel_json(config.engine.tensor_parallel)
    with sharded_construction(ds_json):
        model = build(
            config.model,
            kernel=kernel,
            loss_chunk_tokens=config.engine.loss_chunk_tokens,
            activation_checkpointing=config.engine.activation_checkpointing,
        )
        set_task_head(model, config.objective)
    fill_weights(model, config.model, config.run.seed)
    add_temperature(model, config.objective)
    weights = "those of the checkpoint" if resuming else f"drawn from seed {config.run.seed}"
    if config.run.start_from and not resuming:
        weights = together(lambda: start_from(model, config.model, config.run.start_from), world)
    tuner = add_adapter(model, config)
    if shared > 1:
        share_rows(model, shared)
    if compiled.value:
        compile_blocks(model)
    engine = Engine(config, model, ds_json, world, tuner)
    return engine, Setup(
        derived, info.name + hidden_gpu(info), stage, precision, kernel, compiled, threads, peak, engine.owners, weights
    )
