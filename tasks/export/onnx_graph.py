"""An encoder as an ONNX graph: token states from ids, for any number of rows of any length.

Letters: B rows, T row length, D width.
"""

import contextlib
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from config import CheckpointError, ConfigError, TransformerConfig
from model import Model
from tasks.export.check import import_transformers, padded_rows, require

FILE = "onnx/model.onnx"
"""Where sentence-transformers (`backend="onnx"`) and TEI look for it."""
TOLERANCE = 1e-4
"""Largest difference of hidden states, as a share of the largest."""
LARGEST_FILE = 1 << 30
"""Bytes of weights that the graph's own file holds (protobuf ends at 2 GiB); more lie in a file beside it."""


class States(nn.Module):
    """Their model with ids in and last hidden states out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state


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
def write_onnx(folder: Path, ours: Model) -> float:
    """Write the graph of the model in `folder`, in fp32, and return its largest difference from ours.

    Raises CheckpointError if that is above `TOLERANCE`.
    """
    (folder / FILE).parent.mkdir()
    theirs = import_transformers().AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokens_BT, layout, text_BT = padded_rows(ours.config)
    inputs = _inputs(ours.config, tokens_BT, text_BT)
    size = sum(parameter.numel() * 4 for parameter in theirs.parameters())
    rows, length = torch.export.Dim("batch"), torch.export.Dim("length", max=ours.config.max_positions)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            States(theirs),
            tuple(inputs.values()),
            folder / FILE,
            input_names=list(inputs),
            output_names=["last_hidden_state"],
            dynamic_shapes=tuple({0: rows, 1: length} for _ in inputs),
            external_data=size > LARGEST_FILE,
            dynamo=True,
            verbose=False,
        )
    # Another number of rows and another length than the graph was traced with, too.
    short_BT = tokens_BT[:1, : tokens_BT.shape[1] // 3]
    whole = _difference(folder, inputs, text_BT, ours(tokens_BT, layout=layout))
    every_BT = torch.ones_like(short_BT, dtype=torch.bool)
    return max(whole, _difference(folder, _inputs(ours.config, short_BT, every_BT), every_BT, ours(short_BT)))


def _difference(folder: Path, inputs: dict[str, Tensor], text_BT: Tensor, expected_BTD: Tensor) -> float:
    """Between the states of onnxruntime and ours, as a share of our largest. Raises CheckpointError if it is too large."""
    runtime = require("onnxruntime", "the graph is run in onnxruntime")
    session = runtime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    (actual_BTD,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    expected, actual = expected_BTD[text_BT], torch.from_numpy(actual_BTD)[text_BT]
    difference = ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"the export is refused: hidden states of the ONNX graph differ by {difference:.1e} of the largest, "
            f"more than {TOLERANCE:g}"
        )
    return difference


def _inputs(config: TransformerConfig, tokens_BT: Tensor, text_BT: Tensor) -> dict[str, Tensor]:
    types = {"token_type_ids": torch.zeros_like(tokens_BT)} if getattr(config, "token_types", 0) else {}
    return {"input_ids": tokens_BT, "attention_mask": text_BT.long(), **types}
