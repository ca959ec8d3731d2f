"""Ways to run the same training: they change the speed, not the losses."""

import pytest

from tests.conftest import losses, train

PLAIN = ("monitor.sample_tokens=4", "schedule.steps=8")


def curve(recipe, tmp_path, name: str, *overrides: str) -> dict[int, float]:
    result = train(recipe, f"run.name={name}", *PLAIN, *overrides)
    assert result.returncode == 0, result.stderr
    return losses(tmp_path / "runs" / name)


def largest_difference(left: dict[int, float], right: dict[int, float]) -> float:
    assert left.keys() == right.keys() and len(left) == 8
    return max(abs(left[step] - right[step]) for step in left)


def test_document_masking_trains_the_same_in_any_micro_batch(recipe, tmp_path):
    masked = "data.document_masking=true"
    first = curve(recipe, tmp_path, "micro-2", masked)
    second = curve(recipe, tmp_path, "micro-8", masked, "batch.micro_batch_size=8", "engine.ds_config=zero2")
    assert largest_difference(first, second) <= 1e-5
    assert largest_difference(first, curve(recipe, tmp_path, "unmasked")) > 1e-4


@pytest.mark.slow
def test_compiled_blocks_with_validation_and_samples_between_the_steps(recipe, tmp_path):
    evaluated = "validation.every_steps=2"
    eager = curve(recipe, tmp_path, "eager", evaluated)
    assert largest_difference(eager, curve(recipe, tmp_path, "compiled", evaluated, "engine.compile=on")) <= 1e-4


def test_a_run_builds_no_extension_and_does_not_flood_the_screen(recipe, tmp_path):
    extensions = tmp_path / "extensions"
    extensions.mkdir()
    result = train(recipe, TORCH_EXTENSIONS_DIR=str(extensions))
    assert result.returncode == 0
    assert not list(extensions.iterdir()), "something was compiled at the start"
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) < 40, result.stdout
