"""From a pretrained run through an adapter to an export and a task, as a user runs them."""

from pathlib import Path

import pytest
import torch
import transformers

import model
from config import load_recipe
from engine.checkpoint import find_checkpoint
from engine.state import read_weights
from model.adapters import add_adapter
from tasks.checkpoints import load_model
from tasks.export.folder import export
from tests.conftest import train, write_recipe
from tests.model.tiny import assert_close


@pytest.fixture(scope="module")
def pretrained(corpus, tmp_path_factory) -> tuple[Path, Path]:
    """A recipe, and its run of 2 steps."""
    folder = tmp_path_factory.mktemp("pretrained")
    recipe = write_recipe(folder, corpus)
    done = train(recipe, "schedule.steps=2", "validation.every_steps=0", "run.name=base")
    assert done.returncode == 0, done.stderr
    return recipe, folder / "runs/base"


def adapt(pretrained: tuple[Path, Path], *settings: str) -> Path:
    recipe, base = pretrained
    name = settings[0].partition("=")[2]
    done = train(recipe, f"run.name={name}", f"run.start_from={base}", "schedule.steps=4", *settings)
    assert done.returncode == 0, done.stderr
    assert f"{name}" in done.stdout and "trained" in done.stdout
    return base.parent / name


def unmerged_model(run: Path) -> torch.nn.Module:
    """As it was trained, with the updates beside the frozen matrices."""
    checkpoint = find_checkpoint(run)
    recipe = load_recipe(str(checkpoint / "recipe.yaml"))
    unmerged = model.build(recipe.model)
    add_adapter(unmerged, recipe)
    unmerged.load_state_dict(read_weights(checkpoint))
    return unmerged.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "adalora"])
def test_a_run_exports_merged_and_starts_the_next_one(pretrained, tmp_path, name):
    statistics = "monitor.statistics_steps=[2]"
    run = adapt(
        pretrained, f"adapter.name={name}", statistics, *(["adapter.target_rank=4"] if name == "adalora" else [])
    )
    (table,) = run.rglob("*statistics*.txt")
    assert "lora_A" in table.read_text()
    base, merged = (load_model(path, torch.device("cpu")).model.state_dict() for path in (pretrained[1], run))
    changed = {key for key in base if not torch.equal(base[key], merged[key])}
    assert changed == {key for key in base if "_proj" in key and "blocks" in key}
    assert max(export(run, tmp_path / "exported").values()) <= 1e-5
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    unmerged, tokens_BT = unmerged_model(run), torch.arange(60).view(3, 20)
    with torch.no_grad():
        assert_close(theirs(tokens_BT).logits, unmerged.logits(unmerged(tokens_BT)), "logits of the export")
    again = train(pretrained[0], "run.name=again", f"run.start_from={run}")
    assert again.returncode == 2 and "tasks export" in again.stderr
    again = train(
        pretrained[0], f"run.name=after_{name}", f"run.start_from={tmp_path / 'exported'}", "schedule.steps=2"
    )
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_houlsby_stays_in_the_model_and_is_not_exported(pretrained, tmp_path):
    run = adapt(pretrained, "adapter.name=houlsby", "adapter.bottleneck=4")
    trained = load_model(run, torch.device("cpu"))
    assert any(".adapter.down." in name for name in trained.model.state_dict())
    with pytest.raises(Exception, match="houlsby"):
        export(run, tmp_path / "exported")
    again = train(pretrained[0], "run.name=again", f"run.start_from={run}")
    assert again.returncode == 2 and f"start from what that run started from ({pretrained[1]})" in again.stderr
