"""The hardware table: names people and drivers use, and that its numbers hang together."""

from dataclasses import asdict

import pytest

from config.errors import ConfigError
from config.hardware import Cluster, accelerators, by_device_name, find_accelerator, find_network, networks


@pytest.mark.parametrize(
    ("spelling", "name"),
    {
        "h100-80": "h100-80", "H100": "h100-80", "NVIDIA H100 80GB HBM3": "h100-80", "H100 SXM5": "h100-80",
        "NVIDIA H100 PCIe": "h100-80-pcie", "NVIDIA A100-SXM4-40GB": "a100-40", "a100_80gb": "a100-80",
        "NVIDIA A100 80GB PCIe": "a100-80-pcie", "NVIDIA H200": "h200", "NVIDIA B200": "b200",
        "AMD Instinct MI300X": "mi300x", "rtx4090": "rtx-4090", "NVIDIA GeForce RTX 3090": "rtx-3090",
        "Tesla V100-SXM2-32GB": "v100-32", "NVIDIA L4": "l4", "NVIDIA L40S": "l40s", "cpu": "cpu",
    }.items(),
)  # fmt: skip
def test_usual_spellings_find_their_accelerator(spelling, name):
    assert find_accelerator(spelling).name == name


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 NVL", "NVIDIA A100 MIG 1g.10gb", ""]
)
def test_a_device_with_a_word_that_is_not_understood_is_not_taken_for_another(name):
    assert by_device_name(name) is None


def test_unknown_names_are_answered_with_the_closest_and_all():
    with pytest.raises(
        ConfigError, match=r"unknown accelerator 'h10-80'; did you mean h100-80.*mi300x.*hardware\.yaml"
    ):
        find_accelerator("h10-80")
    with pytest.raises(ConfigError, match=r"unknown network 'infiniband-40'; did you mean infiniband-400.*efa-3200"):
        find_network("infiniband-40")


@pytest.mark.parametrize("gpu", accelerators().values(), ids=lambda gpu: gpu.name)
def test_rows_are_complete_and_plausible(gpu):
    assert all(
        value > 0 for value in asdict(gpu).values() if isinstance(value, int | float) and not isinstance(value, bool)
    )
    assert gpu.source and 0.3 < gpu.matmul_efficiency <= 1
    assert gpu.fp32_tflops < gpu.bf16_tflops < (gpu.fp8_tflops or 1e9)
    if gpu.kind == "gpu":  # products and bytes in a machine balance that no real device leaves
        assert 40 < 1e3 * gpu.bf16_tflops / gpu.memory_bandwidth_gb < 450
        assert gpu.link_gb < gpu.memory_bandwidth_gb


def test_an_adapter_per_node_is_shared_by_its_gpus():
    def rate(network: str, gpus: int) -> float:
        return Cluster(find_accelerator("h100"), gpus, 8, find_network(network)).network_gb

    assert rate("infiniband-400", 64) == rate("ib-400/gpu", 64) == rate("efa-3200", 64) == 50
    assert rate("infiniband-400/node", 64) == 50 / 8
    assert rate("ethernet-10", 2) == 10 / 8 / 2
    assert all(network.latency_us > 0 and network.source for network in networks().values())
    assert Cluster(find_accelerator("h100"), 64, 8, find_network("efa-3200")).nodes == 8
