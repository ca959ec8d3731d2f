"""What --debug makes of a recipe: small, and still one that loads."""

from config.debug import STEPS, debug_recipe

RECIPE = """\
data: {datasets: [{path: corpora/a}], row_length: 256}
model: {vocab_size: 512, num_layers: 4, hidden_size: 256, num_heads: 8}
objective: {name: contrastive, dimensions: [256, 64, 16], dimension_weights: [1, 2, 3]}
adapter: {name: adalora, rank: 32, target_rank: 24, initial_steps: 40, final_steps: 40}
batch: {global_batch_size: 64, micro_batch_size: 64}
optimizer: {lr: 1e-3}
schedule: {steps: 100, warmup_steps: 50}
monitor: {profile_steps: [70]}
"""


def test_what_depends_on_shape_and_length_shrinks_with_them(tmp_path):
    (tmp_path / "my.yaml").write_text(RECIPE)
    config = debug_recipe(str(tmp_path / "my.yaml"), [], 0, {})
    assert (config.model.num_layers, config.model.hidden_size, config.schedule.steps) == (2, 64, STEPS)
    assert (config.objective.dimensions, config.objective.dimension_weights) == ((64, 16), (2, 3))
    assert (config.adapter.rank, config.adapter.target_rank, config.adapter.initial_steps) == (8, 4, 0)
    typed = debug_recipe(str(tmp_path / "my.yaml"), ["schedule.steps=90", "adapter.rank=30"], 0, {})
    assert (typed.schedule.steps, typed.adapter.rank, typed.run.name) == (90, 30, "my-debug")
