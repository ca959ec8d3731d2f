"""The short runs whose memory is measured (memory.py): families, precisions, ZeRO stages, recomputation, optimisers."""

import json
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIZE = (
    "model.num_layers=8", "model.hidden_size=640", "model.num_heads=10", "model.vocab_size=16384",
    "model.max_positions=1024", "data.document_masking=false", "schedule.warmup_steps=0", "monitor.peak_tflops=1",
)  # fmt: skip
BUCKETS = {"reduce_bucket_size": 10_000_000, "stage3_prefetch_bucket_size": 10_000_000}
"""DeepSpeed's buckets, cut to the size of these models as the defaults are to models of some billions of parameters."""
FULL, SELECTIVE = "engine.activation_checkpointing=full", "engine.activation_checkpointing=selective"
MUON, SGD, COMPILED = "optimizer.name=muon", "optimizer.name=sgd", "engine.compile=on"
LLAMA = ("model.num_kv_heads=5", "model.ffn_size=1792")
T5 = ("model.ffn_size=1792",)


@dataclass(frozen=True)
class Case:
    recipe: str
    ds_config: str
    precision: str
    rows: int
    """Of a micro-batch."""
    length: int
    shape: tuple[str, ...] = ()
    """Overrides that the name leaves out."""
    others: tuple[str, ...] = ()
    ranks: int = 1
    accumulation: int = 1

    @property
    def name(self) -> str:
        words = [self.recipe.split("_")[0], self.ds_config, self.precision, f"{self.rows} x {self.length}"]
        words += [f"{self.ranks} ranks"] * (self.ranks > 1) + [f"accumulation {self.accumulation}"] * (
            self.accumulation > 1
        )
        return ", ".join([*words, *("compiled" if text == COMPILED else text.split("=")[1] for text in self.others)])

    def overrides(self, folder: Path) -> list[str]:
        """The ds_config is the shipped one with smaller buckets, written into a folder."""
        values = json.loads((ROOT / f"ds_configs/{self.ds_config}.json").read_text())
        zero = values["zero_optimization"]
        values["zero_optimization"] = {key: BUCKETS.get(key, value) for key, value in zero.items()}
        ds_config = folder / f"{self.ds_config}.json"
        ds_config.write_text(json.dumps(values))
        rows = self.rows * self.ranks * self.accumulation
        return [
            *SIZE,
            *self.shape,
            f"engine.ds_config={ds_config}",
            f"engine.precision={self.precision}",
            f"data.row_length={self.length}",
            f"batch.micro_batch_size={self.rows}",
            f"batch.global_batch_size={rows}",
            "engine.compile=off",
            *self.others,
        ]


CASES = (
    Case("gpt2_124m", "zero0", "fp32", 4, 512),
    Case("gpt2_124m", "zero0", "bf16_autocast", 8, 512),
    Case("gpt2_124m", "zero0", "bf16_autocast", 8, 640, others=(COMPILED,)),
    Case("gpt2_124m", "zero0", "bf16_autocast", 4, 1024, others=(SGD,)),
    Case("gpt2_124m", "zero1", "fp32", 1, 64),
    Case("gpt2_124m", "zero1", "bf16_autocast", 4, 256, accumulation=2),
    Case("gpt2_124m", "zero1", "bf16", 8, 512, others=(MUON,)),
    Case("gpt2_124m", "zero1", "bf16", 4, 256, accumulation=2),
    Case("gpt2_124m", "zero1", "bf16", 4, 512, ranks=2),
    Case("gpt2_124m", "zero2", "bf16", 8, 512, others=(FULL,)),
    Case("gpt2_124m", "zero2", "fp32", 1, 128, accumulation=2),
    Case("gpt2_124m", "zero2_offload", "bf16", 4, 256),
    Case("gpt2_124m", "zero2", "bf16_autocast", 4, 512, ranks=2),
    Case("gpt2_124m", "zero3", "bf16", 8, 512),
    Case("gpt2_124m", "zero3", "bf16_autocast", 4, 256, accumulation=2),
    Case("gpt2_124m", "zero3_offload", "bf16", 4, 256),
    Case("gpt2_124m", "zero3", "bf16", 4, 512, ranks=2),
    Case("llama_1b", "zero0", "fp32", 4, 512, LLAMA),
    Case("llama_1b", "zero1", "bf16_autocast", 4, 640, LLAMA),
    Case("llama_1b", "zero1", "bf16", 8, 640, LLAMA, others=(SELECTIVE,)),
    Case("llama_1b", "zero0", "bf16_autocast", 8, 640, LLAMA, others=(COMPILED,)),
    Case("llama_1b", "zero1", "bf16", 1, 64, ("model.hidden_size=1280", "model.num_kv_heads=5", "model.ffn_size=3584")),
    Case("bert_base", "zero0", "fp32", 4, 256),
    Case("bert_base", "zero1", "bf16_autocast", 8, 256),
    Case("modernbert_base", "zero1", "bf16", 8, 1024),
    Case("t5_base", "zero0", "fp32", 4, 256, T5),
    Case("t5_base", "zero1", "bf16_autocast", 4, 512, T5),
)
