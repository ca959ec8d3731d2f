"""An encoder as an ONNX graph: token states or a task's scores from ids, for any number of rows of any length.

Letters: B rows, T row length, D width or number of scores.
"""

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from config import CheckpointError, ConfigError, TransformerConfig
from config.supervised_schema import TokenClassification
from model import Layout, Model, TaskHead
from model.hf import architecture
from tasks.export.check import import_transformers, padded_rows, require

FILE = "onnx/model.onnx"
"""Where sentence-transformers (`backend="onnx"`) and TEI look for it."""
TOLERANCE = 1e-4
"""Largest difference of outputs, as a share of the largest."""
LARGEST_FILE = 1 << 30
"""Bytes of weights that the graph's own file holds (protobuf ends at 2 GiB); more lie in a file beside it."""


class Output(nn.Module):
    """Their model with ids in and one output."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return getattr(self.model(input_ids=input_ids, attention_mask=attention_mask, **types), self.name)


def check_encoder(config: TransformerConfig) -> None:
    """Raises ConfigError for a model whose graph is not offered, or if a package is missing."""
    if config.family != "bert":
        raise ConfigError(
            f"--onnx is for encoders (family bert), this model is of family {config.family}: leave it out"
            + ("; --gguf is for decoders" if config.family == "gpt" else "")
        )
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require(name, "--onnx writes a graph and runs it")


@torch.no_grad()
def write_onnx(folder: Path, ours: Model, *, heads: bool) -> float:
    """Write the graph of the model in `folder`, in fp32, and return its largest difference from ours: of a task's logits
    with `heads`, else of hidden states.

    Raises CheckpointError if that is above `TOLERANCE`.
    """
    (folder / FILE).parent.mkdir()
    head = ours.lm_head if heads and isinstance(ours.lm_head, TaskHead) else None
    auto_class = architecture(ours.config, head.objective).auto_class if head else "AutoModel"
    theirs = getattr(import_transformers(), auto_class).from_pretrained(folder, dtype=torch.float32).eval()
    tokens_BT, layout, text_BT = padded_rows(ours.config)
    _write_graph(folder, Output(theirs, "logits" if head else "last_hidden_state"), ours.config, tokens_BT, text_BT)
    # Another number of rows and another length than the graph was traced with, too.
    short_BT = tokens_BT[:1, : tokens_BT.shape[1] // 3]
    batches = ((tokens_BT, layout, text_BT), (short_BT, None, torch.ones_like(short_BT, dtype=torch.bool)))
    return max(_difference(folder, ours, head, *batch) for batch in batches)


def _write_graph(folder: Path, output: Output, config: TransformerConfig, tokens_BT: Tensor, text_BT: Tensor) -> None:
    inputs = _inputs(config, tokens_BT, text_BT)
    size = sum(parameter.numel() * 4 for parameter in output.parameters())
    rows, length = torch.export.Dim("batch"), torch.export.Dim("length", max=config.max_positions)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of a torchvision that is not needed
        torch.onnx.export(
            output,
            tuple(inputs.values()),
            folder / FILE,
            input_names=list(inputs),
            output_names=[output.name],
            dynamic_shapes=tuple({0: rows, 1: length} for _ in inputs),
            external_data=size > LARGEST_FILE,
            dynamo=True,
            verbose=False,
        )


def _difference(
    folder: Path, ours: Model, head: TaskHead | None, tokens_BT: Tensor, layout: Layout | None, text_BT: Tensor
) -> float:
    """Between onnxruntime's output and ours, as a share of our largest. Raises CheckpointError if it is too large."""
    runtime = require("onnxruntime", "the graph is run in onnxruntime")
    session = runtime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    inputs = _inputs(ours.config, tokens_BT, text_BT)
    actual = torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0])
    expected = ours(tokens_BT, layout=layout)
    if head is not None:
        expected = head(expected if isinstance(head.objective, TokenClassification) else expected[:, 0])
    if expected.ndim == 3:
        expected, actual = expected[text_BT], actual[text_BT]
    difference = ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"the export is refused: outputs of the ONNX graph differ by {difference:.1e} of the largest, "
            f"more than {TOLERANCE:g}"
        )
    return difference


def _inputs(config: TransformerConfig, tokens_BT: Tensor, text_BT: Tensor) -> dict[str, Tensor]:
    types = {"token_type_ids": torch.zeros_like(tokens_BT)} if getattr(config, "token_types", 0) else {}
    return {"input_ids": tokens_BT, "attention_mask": text_BT.long(), **types}
