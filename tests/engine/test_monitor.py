"""What a run writes: metrics.jsonl, TensorBoard events, the line on the screen."""

import io
import json
import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config import load_recipe
from data.dataset import load_tokenizer
from data.validation import open_validation
from engine.dist import World
from engine.engine import StepReport
from engine.monitor import Monitor, ProgressLine, forget_after
from tests.conftest import metrics, train
from tests.tiny import tiny_config

TAGS = {"loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory_gb"}
TAGS |= {"validation_loss", "validation_perplexity", "validation_bits_per_byte"}


def test_metrics_and_tensorboard_hold_the_same_numbers(recipe, tmp_path):
    result = train(recipe, "monitor.tensorboard=true")
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs/tiny"
    records = metrics(run)
    steps = [r for r in records if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 13))
    assert [r["tokens"] for r in steps] == [step * 8 * 32 for step in range(1, 13)]
    assert [r["step"] for r in records if "validation_loss" in r] == [6, 12]
    assert [r["step"] for r in records if "sample" in r] == [6, 12]

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= TAGS
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(r["step"], pytest.approx(r["loss"])) for r in steps]
    assert {"settings/text_summary", "sample/text_summary"} <= set(events.Tags()["tensors"])


def test_bits_per_byte_are_the_loss_over_the_bytes_of_what_is_predicted(recipe, corpus, tmp_path):
    result = train(recipe, "monitor.tensorboard=false", "schedule.steps=2")
    (record,) = [r for r in metrics(tmp_path / "runs/tiny") if "validation_loss" in r]
    config, tokenizer = load_recipe(str(recipe)), load_tokenizer(corpus)
    (batch,) = open_validation(config.data, rows=10, micro_batch_size=10, vocab_size=512)
    text = "".join(map(tokenizer.decode, batch.labels_BT)).replace(tokenizer.eod_token, "")
    assert text.isascii() and len(text) > 2 * batch.labels_BT.size
    bits = record["validation_loss"] * batch.labels_BT.size / math.log(2) / len(text)
    assert record["validation_bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    assert f"bits per byte {bits:.4f}" in result.stdout and f", {bits:.4f} bits per byte)" in result.stdout


def test_mfu_is_tokens_times_flops_over_peak(recipe, tmp_path):
    result = train(recipe, "monitor.peak_tflops=0.25", "monitor.tensorboard=false")
    # 2 blocks: q and o 32·32, k and v 32·16, SwiGLU 3·32·128; head 512·32; attention 12·L·H·E·T
    flops = 6 * (2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 128) + 512 * 32) + 12 * 2 * 32 * 32
    for record in metrics(tmp_path / "runs/tiny"):
        if "mfu" in record:
            assert record["mfu"] == pytest.approx(record["tokens_per_second"] * flops / 0.25e12)
    assert "of 0.25 TFLOP/s per device (monitor.peak_tflops)" in result.stdout


def test_a_step_that_was_skipped_has_no_gradient_norm(tmp_path, monkeypatch, capsys):
    """fp16 overflowed, so that it is infinite, for which JSON has no word."""
    monkeypatch.setattr("engine.monitor.together", lambda action, world: action())
    setup: Any = SimpleNamespace(derived=SimpleNamespace(flops_per_token=1.0), peak=SimpleNamespace(value=1.0))
    config = tiny_config(monitor={"tensorboard": False})
    monitor = Monitor(tmp_path, config, setup, World(0, 1, torch.device("cpu"), ("here",)), 0, 0.0)
    monitor.step(StepReport(0, 2.5, {"lm": 2.5}, 0.01, math.inf, skipped=True), 128, 128, 0.5)
    monitor.close()
    (record,) = metrics(tmp_path)
    assert record["skipped"] is True and record["loss"] == 2.5 and "grad_norm" not in record
    assert "grad overflow " in capsys.readouterr().out


def test_records_after_the_resumed_step_and_cut_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3, 4)]
    path.write_text("\n".join(lines) + '\n{"step": 2, "lo')
    forget_after(path, 2)
    assert path.read_text() == "\n".join(lines[:2]) + "\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_that_rewrites_itself():
    out = Terminal()
    line = ProgressLine(out)
    for step in range(3):
        line.live(f"step {step}")
    line.keep("validation")
    assert out.getvalue() == "\r\x1b[Kstep 0\r\x1b[Kstep 1\r\x1b[Kstep 2\nvalidation\n"


def test_a_pipe_gets_few_plain_lines_and_always_the_last():
    out = io.StringIO()
    line = ProgressLine(out)
    for step in range(100):
        line.live(f"step {step}", last=step == 99)
    assert out.getvalue() == "step 0\nstep 99\n"


def test_the_status_line_says_what_a_person_watches(recipe):
    result = train(recipe, "monitor.tensorboard=false")
    pattern = r"step 12/12  loss \d\.\d{4}  lr \S+  grad \S+  [\d,]+ tokens/s  MFU \S+%  \d\.\d GB  ETA 0m00s"
    assert re.search(pattern, result.stdout), result.stdout
