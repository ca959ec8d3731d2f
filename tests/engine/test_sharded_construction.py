"""Under ZeRO 3 no process ever holds the whole model, and it starts from the same weights."""

import json

from config.count import count_parameters
from config.ds_config import read_ds_config
from tests.ranks import run_ranks
from tests.tiny import tiny_config
from tests.workers.memory import bytes_while_building
from tests.workers.steps import load_all, save_all, train_all

SHAPE = {"num_layers": 16, "hidden_size": 64, "num_heads": 4, "vocab_size": 64}


def test_only_shards_and_one_parameter_are_alive_while_a_model_is_built():
    cases = [{"model": {**SHAPE}, "engine": {"ds_config": name}} for name in ("zero2", "zero3")]
    counts = count_parameters(tiny_config(**cases[0]).model)
    whole, largest = 4 * counts.total, 4 * counts.largest_block
    for replicated, sharded in run_ranks(2, bytes_while_building, cases):
        assert replicated >= whole
        assert sharded <= whole / 2 + largest


def test_sharded_weights_are_those_of_a_whole_model():
    """Padding (odd sizes), tied embeddings, offload, a second dtype: the first losses are those of stages 1 and 2."""
    shapes = [
        {"hidden_size": 35, "head_size": 10, "vocab_size": 65, "ffn_size": 45},
        {"tied_embeddings": True},
        {"preset": "gpt2"},
    ]
    cases = [{"model": shape, "engine": {"ds_config": d}} for shape in shapes for d in ("zero0", "zero3")]
    cases += [{"engine": {"ds_config": d, "precision": "bf16"}} for d in ("zero2", "zero3")]
    cases += [{"engine": {"ds_config": d}} for d in ("zero2_offload", "zero3_offload")]
    curves = run_ranks(2, train_all, cases, 3)[0]
    for whole, sharded, case in zip(curves[::2], curves[1::2], cases[::2], strict=True):
        difference = max(abs(a - b) for pair in zip(whole, sharded, strict=True) for a, b in zip(*pair, strict=True))
        assert whole[0][0] == sharded[0][0] and difference <= 1e-5, f"{case}: {difference}"


def test_second_shards_within_a_node_follow_what_is_filled_stepped_and_loaded(tmp_path):
    """hpZ over two ranks: DeepSpeed cuts these shards as it builds the model, before its weights are filled or loaded."""
    values = read_ds_config("zero3_hpz").values
    values["zero_optimization"]["zero_hpz_partition_size"] = 2
    (tmp_path / "hpz.json").write_text(json.dumps(values))
    cases = [{"engine": {"ds_config": name}} for name in ("zero1", str(tmp_path / "hpz.json"))]
    plain, hpz = run_ranks(2, save_all, str(tmp_path / "saved"), cases, 3)[0]
    moves = [(0, cases[1]), (1, cases[1]), (1, cases[0])]
    # One engine in a process: DeepSpeed's groups for hpZ are global.
    moved = [run_ranks(2, load_all, str(tmp_path / "saved"), [move], 3)[0][0] for move in moves]
    for curve in (hpz, *moved):
        difference = max(abs(a - b) for pair in zip(plain, curve, strict=True) for a, b in zip(*pair, strict=True))
        assert difference <= 1e-5, f"{curve} and {plain}"
