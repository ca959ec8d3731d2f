"""What --space says, and what it is told when it says it wrongly."""

import pytest

from config import ConfigError, load_recipe
from tasks.search.space import check_space, overrides, read_space

pytest.importorskip("optuna")


def test_axes_are_what_optuna_samples_from(tmp_path):
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    file = tmp_path / "space.yaml"
    file.write_text(
        "optimizer:\n  lr: log:1e-4:1e-2\n  betas: [[0.9, 0.95], [0.9, 0.99]]\nmodel.num_layers: int:2:8:2\n"
    )
    axes = read_space(
        [
            str(file),
            "model.dropout=uniform:0:0.3:0.1",
            "batch.global_batch_size=log_int:8:64",
            "optimizer.name=adamw,muon",
        ]
    )
    assert {axis.setting: axis.distribution for axis in axes} == {
        "optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True),
        "optimizer.betas": CategoricalDistribution(("[0.9, 0.95]", "[0.9, 0.99]")),
        "model.num_layers": IntDistribution(2, 8, step=2),
        "model.dropout": FloatDistribution(0, 0.3, step=0.1),
        "batch.global_batch_size": IntDistribution(8, 64, log=True),
        "optimizer.name": CategoricalDistribution(("adamw", "muon")),
    }
    again = read_space([str(axis) for axis in axes])
    assert again == axes
    assert [len(axis.grid()) for axis in axes if axis.kind != "log" and axis.kind != "log_int"] == [2, 4, 4, 2]


@pytest.mark.parametrize(
    "text", ["uniform:0:0.3:0.1", "uniform:0.1:0.7:0.2", "uniform:1e-6:7e-6:1e-6", "int:2:9:3", "int:0:4"]
)
def test_a_grid_has_only_values_that_optuna_takes(text):
    from optuna import create_trial

    (axis,) = read_space([f"model.dropout={text}"])
    for value in axis.grid():
        create_trial(params={axis.setting: value}, distributions={axis.setting: axis.distribution}, value=0.0)
    assert axis.grid()[-1] <= axis.high and len(axis.grid()) > 2


def test_values_become_settings_of_a_recipe_and_the_recipes_own_are_found(recipe):
    axes = read_space(["optimizer.lr=log:1e-4:1e-1", "model.preset=llama,qwen3", "model.num_layers=int:2:4"])
    check_space(axes, str(recipe), [])
    config = load_recipe(str(recipe))
    own = {axis.setting: axis.of(config) for axis in axes}
    assert own == {"optimizer.lr": 0.01, "model.preset": "qwen3", "model.num_layers": 2}
    assert read_space(["model.num_layers=int:3:4"])[0].of(config) is None
    chosen = overrides(axes, {"optimizer.lr": 0.00012345678, "model.preset": "llama", "model.num_layers": 3})
    assert chosen == ["optimizer.lr=0.000123457", "model.preset=llama", "model.num_layers=3"]
    changed = load_recipe(str(recipe), chosen)
    assert (changed.optimizer.lr, changed.model.preset, changed.model.num_layers) == (0.000123457, "llama", 3)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("optimizer.lrr=log:1e-4:1e-2", r"unknown setting; did you mean lr\?"),
        ("optimiser.lr=log:1e-4:1e-2", r"unknown section; did you mean optimizer\?"),
        ("optimizer.lr=uniform:-1:1", r"optimizer.lr=-1: must be greater than 0, not -1"),
        ("schedule.min_lr_ratio=uniform:0:2", r"must be at most 1, not 2"),
        ("optimizer.name=adamw,lyon", r"optimizer.name=lyon: expected .*did you mean lion\?"),
        ("model.num_layers=uniform:2:8", r"expected a whole number, not 4\.\d+; for whole numbers write int:"),
        ("optimizer.lr=loguniform:1e-4:1e-2", r"unknown range loguniform; expected uniform:LOW:HIGH, log:LOW:HIGH"),
        ("optimizer.lr=log:1e-2:1e-4", r"goes from 1e-2 up to 1e-4, which is not more"),
        ("optimizer.lr=log:0:1e-2", r"a logarithmic range begins above 0"),
        ("optimizer.lr=log:1e-4:1e-2:3", r"log takes log:LOW:HIGH"),
        ("model.num_layers=int:2:eight", r"int takes whole numbers, not 2:eight"),
        ("model.num_layers=int:2:4:8", r"the step 8 does not fit between 2 and 4"),
        ("optimizer.lr=1e-3", r"needs two values or more"),
        ("optimizer.lr=1e-3,1e-3", r"a value of optimizer.lr stands there twice"),
        ("optimizer.lr", r"expected section.key=uniform:LOW:HIGH"),
        ("nowhere.yaml", r"nowhere.yaml: No such file"),
        ("run.name=a,b", r"the search sets run.name itself"),
        ("validation.rows=int:1:9", r"judged in different ways cannot be compared"),
        ("schedule.steps=int:5:9", r"schedule.steps is also set on the command line"),
    ],
)
def test_wrong_spaces(recipe, space, message):
    with pytest.raises(ConfigError, match=message):
        check_space(read_space([space]), str(recipe), ["schedule.steps=12"])


def test_all_mistakes_at_once_with_their_lines(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("optimizer:\n  lr: log:1:0.1\nmodel.num_layers: int:2\n")
    with pytest.raises(ConfigError) as caught:
        read_space([str(file), "optimizer.lr=1,2", "optimizer.lr=1,3"])
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{file}:2", f"{file}:3", "--space"]


def test_what_only_goes_wrong_together_is_left_to_the_trials(recipe):
    """hidden_size 32 has no 5 heads, but another hidden_size may."""
    check_space(
        read_space(["model.num_heads=int:1:5", "model.hidden_size=32,40"]), str(recipe), ["model.num_kv_heads=1"]
    )
