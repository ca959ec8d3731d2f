"""`python -m launch plan`: what it finds, recommends, refuses and writes."""

import json
import subprocess
import time
from dataclasses import replace

import pytest

from config import ConfigError, derive, load_recipe
from config.command_line import Answered, parse_command_line
from config.ds_json import deepspeed_json
from config.hardware import Cluster, find_accelerator, find_network
from config.load import recipe_names
from config.memory import estimate_memory
from config.parallel import ranks_per_row
from launch.__main__ import main
from launch.plan.choices import Choices, choose
from launch.plan.option import Room, evaluate
from launch.plan.reason import nothing_fits, recommend
from launch.plan.speed import estimate_step


def room(gpu: str, gpus: int, host_gb: float = 1024) -> Room:
    return Room(Cluster(find_accelerator(gpu), gpus, min(gpus, 8), find_network("infiniband-400")), host_gb)


def plan(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["plan", *arguments])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def seven_b() -> Choices:
    return choose(load_recipe("llama_7b"), room("h100-80", 64))


def test_all_that_is_offered_fits_and_the_order_is_that_of_speed(seven_b):
    cluster = seven_b.room.cluster
    assert len(seven_b.fitting) > 50 and seven_b.too_large
    seconds = [option.seconds for option in seven_b.fitting]
    assert seconds == sorted(seconds)
    for option in seven_b.fitting[::10]:
        config = option.config
        assert derive(config, 64).accumulation_steps == option.derived.accumulation_steps
        if not option.ds_config.path.startswith("ds_configs/"):
            continue  # made for the plan, so train.py reads it only after --write
        ds_json = deepspeed_json(config, option.derived, option.precision, cluster.accelerator.device_info)
        assert sum(estimate_memory(config, option.derived, ds_json).device.values()) == option.device_bytes <= 80e9
        assert estimate_step(config, option.derived, ds_json, cluster).seconds == option.seconds


def test_nothing_faster_that_fits_is_overlooked(seven_b):
    """Every shipped configuration and every micro-batch, one by one."""
    best = seven_b.fitting[0].seconds
    for name in ("zero1", "zero2", "zero3", "zero3_hpz", "zero3_offload"):
        for recompute in ("none", "selective", "full"):
            for size in (1, 2, 4, 8, 16):
                overrides = f"engine.ds_config={name}", f"engine.activation_checkpointing={recompute}"
                config = load_recipe("llama_7b", [*overrides, f"batch.micro_batch_size={size}"])
                option = evaluate(config, seven_b.room.cluster)
                if option.excess(seven_b.room) <= 0:
                    step = estimate_step(config, option.derived, option.ds_json, seven_b.room.cluster)
                    assert step.seconds >= best, (name, recompute, size)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_has_a_plan_on_64_gpus(name):
    config = load_recipe(name)
    try:
        derive(config, 64)
    except ConfigError:
        config = load_recipe(name, ["batch.global_batch_size=64", "batch.micro_batch_size=1"])
    assert recommend(choose(config, room("h100-80", 64)))


def test_small_models_are_not_sharded_more_than_they_need():
    for name in ("gpt2_124m", "bert_base", "t5_base"):
        best = choose(load_recipe(name), room("h100-80", 8)).best()
        engine = best.config.engine
        assert best.stage <= 2 and not best.offloads, name
        assert (engine.activation_checkpointing, ranks_per_row(engine)) == ("none", 1), name


def test_a_large_model_on_few_gpus_is_offloaded_only_if_nothing_else_fits():
    best = choose(load_recipe("llama_7b"), room("a100-80", 2)).best()
    assert best.offloads and best.host_bytes > 0
    assert not choose(load_recipe("llama_7b"), room("a100-80", 16)).best().offloads


@pytest.mark.parametrize(("gain", "offloads"), [(1.2, False), (1.3, True)])
def test_offload_has_to_be_far_faster_to_be_recommended(seven_b, gain, offloads):
    plain = next(option for option in seven_b.fitting if not option.offloads)
    other = next(option for option in seven_b.fitting if option.offloads)
    other = replace(other, step=replace(plain.step, compute={"all": plain.seconds / gain}, communication={}))
    choice = recommend(replace(seven_b, fitting=[other, plain]))
    assert choice.value.offloads is offloads
    assert ("without offload, which might save 17% of the time" in choice.reason) is not offloads


def test_what_is_set_on_the_command_line_stays():
    config = load_recipe("llama_7b", ["engine.ds_config=zero2", "batch.micro_batch_size=1"])
    choices = choose(config, room("h100-80", 64), frozenset({"engine.ds_config", "batch.micro_batch_size"}))
    kinds = {(o.config.engine.ds_config, o.config.batch.micro_batch_size) for o in choices.fitting}
    assert kinds == {("zero2", 1)}


def test_the_negatives_of_contrastive_learning_stay(capsys):
    arguments = (
        "gpt2_124m",
        "objective.name=contrastive",
        "batch.micro_batch_size=16",
        "--gpus",
        "8",
        "--gpu",
        "h100-80",
    )
    code, text, error = plan(capsys, arguments[0], arguments[1], *arguments[3:], "--json")
    assert code == 0, error
    assert {option["settings"]["batch.micro_batch_size"] for option in json.loads(text)["options"]} == {16}


def test_if_nothing_fits_it_says_by_how_much_and_how_many_gpus_would_do():
    config, small = load_recipe("llama_70b"), room("a100-40", 8, host_gb=256)
    choices = choose(config, small)
    assert not choices.fitting and recommend(choices) is None
    text = nothing_fits(choices, frozenset())
    assert "more than the" in text
    number = int(text.split("--gpus ")[1].split(",")[0])
    for gpus, fits in ((number, True), (number - 8, False)):
        larger = replace(small, cluster=replace(small.cluster, gpus=gpus))
        try:
            assert bool(choose(config, larger).fitting) is fits
        except ConfigError:
            assert not fits  # the batch does not divide among so many


def test_it_stays_quick_for_70_billion_parameters_on_1024_gpus():
    config, large = load_recipe("llama_70b"), room("h100-80", 1024)
    start = time.process_time()
    assert recommend(choose(config, large))
    assert time.process_time() - start < 2


def test_the_report_agrees_with_its_json_and_with_the_dry_run(capsys):
    arguments = "llama_1b", "--gpus", "8", "--gpu", "a100-80"
    code, text, _ = plan(capsys, *arguments)
    assert code == 0
    numbers = json.loads(plan(capsys, *arguments, "--json")[1])
    best = numbers["recommended"]
    assert f"{best['tokens_per_second']:,.0f} tokens/s" in text and best["reason"].split()[0] in text
    days = numbers["total_tokens"] / best["tokens_per_second"] / 86400
    assert f"{days:,.1f} days" in text
    assert numbers["forecast"]["dollars"] == pytest.approx(
        8 * numbers["forecast"]["seconds"] / 3600 * find_accelerator("a100-80").dollars_per_hour
    )
    overrides = [f"{name}={value}" for name, value in best["settings"].items()]
    with pytest.raises(Answered) as dry_run:
        parse_command_line(["llama_1b", *overrides, "--dry-run", "--ranks", "8"], {})
    same = str(dry_run.value).splitlines()[1:-1]  # not the title and what it was planned for
    assert [line for line in same if line not in text.splitlines()] == []


def test_other_prices_and_memory_can_be_given(capsys):
    arguments = "llama_1b", "--gpus", "8", "--gpu", "h100-80", "--json"
    plain = json.loads(plan(capsys, *arguments)[1])
    dear = json.loads(plan(capsys, *arguments, "--dollars-per-hour", "29.9", "--memory", "30")[1])
    assert dear["forecast"]["dollars"] > 9 * plain["forecast"]["dollars"]
    assert sum(dear["recommended"]["device_bytes"].values()) < 30e9 < sum(plain["recommended"]["device_bytes"].values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llama_7b", "--gpus", "8", "--gpu", "h10-80"], ("unknown accelerator", "did you mean h100-80")),
        (["llama_7b", "--gpus", "60", "--gpu", "h100-80"], ("--gpus 60 is not a multiple", "56 or 64")),
        (["gpt2_124m", "--gpus", "24", "--gpu", "h100-80"], ("batch.global_batch_size 512", "number of ranks to")),
        (["llama_8b", "--gpus", "8", "--gpu", "h100-80"], ("no such recipe", "did you mean")),
        (["llama_7b", "--gpus", "8", "--gpu", "v100-32"], ("bf16 is not supported on v100-32", "fp16 or auto")),
        (["llama_7b", "--gpu", "h100-80"], ("--gpu h100-80 without --gpus",)),
        (
            ["llama_7b", "--gpus", "8", "--gpu", "h100-80", "--network", "infiniban-400"],
            ("did you mean infiniband-400",),
        ),
        (["llama_7b", "--gpus", "-8", "--gpu", "h100-80"], ("--gpus -8", "above zero")),
        (["llama_7b", "--gpus", "8", "--gpu", "h100-80", "--memory", "nan"], ("--memory nan", "above zero")),
        (
            ["gpt2_124m", "--gpus", "8", "--gpu", "h100-80", "--write", "/dev/null/plan"],
            ("/dev/null/plan/gpt2_124m.yaml cannot be written: Not a directory; give another --write",),
        ),
        (["gpt2_124m", "--gpus", "8", "--gpu", "h100-80", "--tune"], ("--tune measures this machine", "h100-80")),
    ],
)
def test_mistakes_get_one_message(capsys, arguments, words):
    code, _, error = plan(capsys, *arguments)
    assert code == 2 and error.startswith("error: ") and "Traceback" not in error
    for word in words:
        assert word in error


def test_without_gpus_it_plans_for_this_machine(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    code, text, _ = plan(capsys, "gpt_debug")
    assert code == 0 and "1 × CPU" in text
    assert plan(capsys, "gpt_debug", "--gpus", "8")[2].startswith("error: --gpus 8: this machine has none")


@pytest.mark.parametrize(("recipe", "gpu", "gpus"), [("llama_7b", "h100-80", 64), ("llama_7b", "a100-80", 2)])
def test_what_it_writes_is_accepted_by_those_who_read_it(capsys, tmp_path, recipe, gpu, gpus):
    arguments = recipe, "engine.loss_chunk_tokens=512", "--gpus", str(gpus), "--gpu", gpu, "--write", str(tmp_path)
    code, text, error = plan(capsys, *arguments)
    assert code == 0, error
    written = tmp_path / f"{recipe}.yaml"
    numbers = json.loads(plan(capsys, *arguments[:-2], "--json")[1])
    config = load_recipe(str(written))
    assert config.engine.loss_chunk_tokens == 512
    assert config.batch.micro_batch_size == numbers["recommended"]["settings"]["batch.micro_batch_size"]
    with pytest.raises(Answered) as dry_run:
        parse_command_line([str(written), "--dry-run", "--ranks", str(gpus)], {})
    assert text.splitlines()[0] == str(dry_run.value).splitlines()[0]
    assert load_recipe(recipe).model_copy(update={"engine": config.engine, "batch": config.batch}) == config
    assert subprocess.run(["bash", "-n", str(tmp_path / f"{recipe}.sbatch")]).returncode == 0
    assert f"--nodes={max(gpus // 8, 1)}\n" in (tmp_path / f"{recipe}.sbatch").read_text()

    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(tmp_path / "accelerate.yaml"))
    assert loaded.num_processes == gpus
    assert (
        loaded.deepspeed_config["deepspeed_config_file"]
        .removesuffix(".json")
        .endswith(config.engine.ds_config.removesuffix(".json"))
    )

    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    code, _, error = plan(capsys, *arguments)
    assert code == 2 and "would be overwritten" in error
    assert plan(capsys, *arguments, "--force")[0] == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_the_gpus_of_this_machine_are_those_that_the_driver_names(capsys, monkeypatch, tmp_path):
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/bash\nfor i in 1 2 3 4; do echo NVIDIA H100 80GB HBM3; done\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert "4 × h100-80" in plan(capsys, "llama_1b")[1]
    driver.write_text("#!/bin/bash\necho NVIDIA Wonder 1\n")
    assert "does not know this machine's NVIDIA Wonder 1" in plan(capsys, "llama_1b")[2]
