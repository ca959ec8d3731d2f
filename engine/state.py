"""Training state as safetensors files of fragments: written without communication, read at any topology."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from config.errors import CheckpointError
from data.files import sync
from engine.fragments import Columns, Fragment, base_optimizer, fragments, frozen, owned_here, parameter_shapes, publish
from engine.muon import MOMENTUM, Muon

WEIGHT = "weight"
FRAGMENTS = "fragments"
ADAPTER_WEIGHT = "lora_"
"""In the names of an adapter of low rank."""
OF_ADAPTER = ("importance", "uncertainty")
"""Kinds of moments that AdaLoRA keeps of its weights, beside the optimiser's."""


def write_fragments(folder: Path, engine: Any, rank: int, world_size: int) -> Path:
    """Write this rank's share of weights (fp32) and optimiser moments; returns the file. Checked by reading it back."""
    moments = base_optimizer(engine).state
    tensors = {}
    for fragment in owned_here(engine, rank, world_size):
        for kind, flat in _flat_tensors(fragment, moments):
            tensors[_key(kind, fragment)] = fragment.view(flat).contiguous()
    path = folder / FRAGMENTS / _rank_file(rank)
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: {error}") from None
    sync(path)
    with safe_open(path, "pt") as written:
        for key, tensor in tensors.items():
            if not torch.equal(written.get_tensor(key), tensor.cpu()):
                raise CheckpointError(f"{path}: {key} reads back differently from what was written; check the disk")
    return path


def engine_facts(engine: Any) -> dict[str, Any]:
    """What the fragments do not say: shapes, kinds and scalars of optimiser state, fp16 loss scale. Equal on all ranks."""
    moments: set[str] = set()
    scalars: dict[str, float] = {}
    for state in base_optimizer(engine).state.values():
        moments |= {key for key, value in state.items() if not _is_scalar(value)}
        scalars |= {key: float(value) for key, value in state.items() if _is_scalar(value)}
    return {
        "shapes": parameter_shapes(engine),
        "moments": sorted(moments),
        "scalars": scalars,
        "loss_scale": {k: v for k, v in vars(loss_scaler(engine)).items() if isinstance(v, int | float)},
    }


def fragment_bytes(engine: Any, facts: dict[str, Any]) -> int:
    """Of all ranks' fragments: weights and the moments that belong to each trained parameter, in fp32."""
    optimizer = base_optimizer(engine)
    still = {name for name, p in engine.module.named_parameters() if not p.requires_grad}
    kinds = {name: moments_of(optimizer, name, facts["moments"]) for name in facts["shapes"] if name not in still}
    copies = {name: 1 + len(kinds.get(name, [])) for name in facts["shapes"]}
    return 4 * sum(copies[name] * math.prod(shape) for name, shape in facts["shapes"].items())


def read_fragments(folder: Path, engine: Any, facts: dict[str, Any], rank: int, world_size: int) -> None:
    """Fill weights and optimiser state from a checkpoint written at any number of ranks and any ZeRO stage.

    Raises CheckpointError if it belongs to another model.
    """
    check_shapes(folder, facts["shapes"], parameter_shapes(engine))
    index = FragmentIndex(folder / FRAGMENTS, near=(rank + 0.5) / world_size)
    optimizer = base_optimizer(engine)
    for fragment in fragments(engine):
        index.read(WEIGHT, fragment, fragment.owner)
        state = optimizer.state[fragment.owner]  # type: ignore[index]
        for kind in moments_of(optimizer, fragment.name, facts["moments"]):
            if kind not in state:
                state[kind] = torch.zeros_like(fragment.owner)
            index.read(kind, fragment, state[kind])
        _restore_scalars(optimizer, fragment.owner, facts["scalars"])
    for fragment in frozen(engine):
        index.read(WEIGHT, fragment, fragment.owner)
    for name, value in facts["loss_scale"].items():
        setattr(loss_scaler(engine), name, value)
    publish(engine)


def moments_of(optimizer: torch.optim.Optimizer, name: str, kinds: list[str]) -> list[str]:
    """Those of a checkpoint's kinds of moments that belong to a parameter: Muon keeps another one for its matrices,
    AdaLoRA more for its own."""
    if ADAPTER_WEIGHT not in name:
        kinds = [kind for kind in kinds if kind not in OF_ADAPTER]
    if not isinstance(optimizer, Muon):
        return kinds
    return [kind for kind in kinds if (kind == MOMENTUM) == (name in optimizer.matrices)]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint as whole fp32 tensors, for a model without DeepSpeed."""
    shapes = json.loads((folder / "state.json").read_text())["engine"]["shapes"]
    index = FragmentIndex(folder / FRAGMENTS)
    weights = {}
    for name, shape in shapes.items():
        weights[name] = torch.empty(shape)
        index.read(WEIGHT, Fragment(name, 0, weights[name].numel(), weights[name], 0), weights[name])
    return weights


def check_shapes(folder: Path, saved: dict[str, list[int]], wanted: dict[str, list[int]]) -> None:
    names = [name for name in sorted(saved.keys() | wanted.keys()) if saved.get(name) != wanted.get(name)]
    if names:
        shown = "; ".join(f"{n}: {saved.get(n, 'absent')} there, {wanted.get(n, 'absent')} here" for n in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointError(
            f"{folder} holds another model: {shown}{more}. Give this run another run.name, or run.resume=fresh"
        )


@dataclass(frozen=True)
class Piece:
    start: int
    numel: int
    columns: Columns | None
    key: str
    file: Any

    def elements(self, first: int, last: int) -> Tensor:
        """Its elements from place `first` to `last` of the flattened parameter, or of its columns."""
        return self.file.get_slice(self.key)[first - self.start : last - self.start]


class FragmentIndex:
    """Which file holds which elements, from the files' own headers.

    Files are opened when they are needed, those of ranks whose shards lie where this rank's do first: at the topology of
    the save one file is enough, and on half the ranks two are.
    """

    def __init__(self, folder: Path, near: float = 0.0):
        """`near` is the place of this rank among all, from 0 to 1."""
        self.folder = folder
        names = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
        nearest = sorted(range(len(names)), key=lambda number: abs(number + 0.5 - near * len(names)))
        self._unopened = (folder / names[number] for number in nearest)
        self._pieces: dict[tuple[str, str], list[Piece]] = defaultdict(list)

    def read(self, kind: str, fragment: Fragment, flat: Tensor) -> None:
        """Copy the fragment's elements of `kind` into its place in `flat`."""
        target = fragment.view(flat)
        while (missing := self._copy(kind, fragment, target)) and self._open_next():
            pass
        if missing:
            raise CheckpointError(
                f"{self.folder}: {missing} of the {fragment.numel} elements of {kind} of {fragment.name} from "
                f"{fragment.start} on are missing"
            )

    def _copy(self, kind: str, fragment: Fragment, target: Tensor) -> int:
        """Copy what the opened files hold, once it is all there; returns how many elements are still missing."""
        end = fragment.start + fragment.numel
        pieces = self._pieces[kind, fragment.name]
        if any(piece.columns != fragment.columns for piece in pieces):
            return _copy_across_columns(pieces, fragment, target)
        overlaps = [(piece, max(piece.start, fragment.start), min(piece.start + piece.numel, end)) for piece in pieces]
        overlaps = [(piece, first, last) for piece, first, last in overlaps if first < last]
        missing = fragment.numel - sum(last - first for _, first, last in overlaps)
        if not missing:
            for piece, first, last in overlaps:
                target[first - fragment.start : last - fragment.start].copy_(piece.elements(first, last))
        return missing

    def _open_next(self) -> bool:
        path = next(self._unopened, None)
        if path is None:
            return False
        file = safe_open(path, "pt").__enter__()
        for key in file.keys():  # noqa: SIM118 (not a mapping)
            kind, name, start, *columns = key.split("/")
            numel = file.get_slice(key).get_shape()[0]
            self._pieces[kind, name].append(
                Piece(int(start), numel, Columns(*map(int, columns)) if columns else None, key, file)
            )
        return True


def _copy_across_columns(pieces: list[Piece], fragment: Fragment, target: Tensor) -> int:
    """Copy between different slices of a matrix's columns, place by place; returns how many elements are missing."""
    places = torch.arange(fragment.start, fragment.start + fragment.numel)
    whole = fragment.columns.to_whole(places) if fragment.columns else places
    missing = fragment.numel
    for piece in pieces:
        there = piece.columns.from_whole(whole) if piece.columns else whole
        found = (there >= piece.start) & (there < piece.start + piece.numel)
        if found.any():
            first, last = int(there[found].min()), int(there[found].max()) + 1
            values = piece.elements(first, last)[there[found] - first]
            target[found.to(target.device)] = values.to(target.device, target.dtype)
            missing -= int(found.sum())
    return missing


def _key(kind: str, fragment: Fragment) -> str:
    """`kind/parameter/start`, and for some columns of a matrix `/part/parts/width`."""
    columns = fragment.columns
    tail = f"/{columns.part}/{columns.parts}/{columns.width}" if columns else ""
    return f"{kind}/{fragment.name}/{fragment.start}{tail}"


def _rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def _flat_tensors(fragment: Fragment, moments: dict[Any, dict[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    yield WEIGHT, fragment.owner
    for kind, value in moments.get(fragment.owner, {}).items():
        if not _is_scalar(value) and (kind not in OF_ADAPTER or ADAPTER_WEIGHT in fragment.name):
            assert value.shape == fragment.owner.shape, f"{kind} is not element-wise"
            yield kind, value


def loss_scaler(engine: Any) -> Any:
    """The dynamic fp16 loss scaler, or something without state."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return scaler if getattr(scaler, "dynamic", False) else SimpleNamespace()


def _is_scalar(value: Any) -> bool:
    return not torch.is_tensor(value) or value.dim() == 0


def _restore_scalars(optimizer: torch.optim.Optimizer, owner: Tensor, scalars: dict[str, float]) -> None:
    device = owner.device if optimizer.defaults.get("fused") else "cpu"
    for key, value in scalars.items():
        optimizer.state[owner][key] = torch.tensor(value, dtype=torch.float32, device=device)  # type: ignore[index]
