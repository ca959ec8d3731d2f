"""Every shipped recipe loads, divides, plans and does what its first line says; the help names every setting."""

import pytest

from config import RunConfig, derive, dump_recipe, load_recipe
from config.device import DeviceInfo
from config.ds_json import deepspeed_json, resolve_precision
from config.fields import all_settings
from config.help import settings_help
from config.load import RECIPES, recipe_names
from config.parallel import ranks_per_row
from config.plan import plan

GPU = DeviceInfo("gpu", "H200", fast_bf16=True, fp16=True)
SHIPPED = recipe_names()


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_recipe_loads_and_plans(name, ranks):
    config = load_recipe(name, [])
    micro_batches = config.batch.global_batch_size // config.batch.micro_batch_size
    ranks = min(ranks, micro_batches) * ranks_per_row(config.engine)
    derived = derive(config, ranks)
    precision = resolve_precision(config, GPU).value
    text = str(plan(config, derived, deepspeed_json(config, derived, precision, GPU)))
    assert text.startswith(f"{name}: {ranks} rank")
    assert derived.batch_equation in text and f"{derived.parameters.total:,}" in text and precision in text


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_survives_being_saved(name, tmp_path):
    config = load_recipe(name, [])
    (tmp_path / "recipe.yaml").write_text(dump_recipe(config))
    assert load_recipe(str(tmp_path / "recipe.yaml"), []) == config


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_opens_with_what_it_is_and_reads_prepared_corpora(name):
    first = (RECIPES / f"{name}.yaml").read_text().partition("\n")[0]
    assert first.startswith("# ") and first.endswith(".")
    assert all(dataset.path.startswith("corpora/") for dataset in load_recipe(name, []).data.datasets)


@pytest.mark.parametrize(
    ("name", "ranks", "parameters", "tokens_per_step", "tokens"),
    [
        ("gpt2_124m", 8, 124e6, 0.5 * 2**20, 10e9),
        ("llama_1b", 8, 1.1e9, 2 * 2**20, 100e9),
        ("llama_7b", 64, 6.74e9, 4 * 2**20, 2e12),
    ],
)
def test_large_recipes_have_the_published_size_and_batch(name, ranks, parameters, tokens_per_step, tokens):
    derived = derive(load_recipe(name, []), ranks)
    assert derived.parameters.total == pytest.approx(parameters, rel=5e-3)
    assert derived.tokens_per_step == tokens_per_step
    assert derived.total_tokens == pytest.approx(tokens, rel=1e-3)


def test_help_explains_every_setting_and_recipe_within_100_columns():
    lines = settings_help().split("\n")
    assert max(map(len, lines)) <= 100
    for setting in all_settings(RunConfig):
        if len(setting.path) > 1:
            assert setting.field.description, f"{setting} has no docstring"
            assert any(line.strip().split(" ")[0].split(".")[-1] == setting.path[-1] for line in lines), setting
    for name in SHIPPED:
        assert any(line.startswith(f"  {name} ") for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "Rows in one optimiser step, over all ranks. [whole number > 0; required]" in text
    assert "[constant | linear | cosine | wsd | inverse_sqrt; default cosine]" in text
    assert "[list of number >= 0; required]" in text
