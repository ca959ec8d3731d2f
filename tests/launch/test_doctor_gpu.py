"""The doctor on GPUs, drivers and builds of torch that this machine need not have: nvidia-smi's report and the torch
probe's facts are written here."""

import os

import pytest

from launch.doctor import gpu, packages
from launch.doctor.check import Check
from launch.doctor.probe import judge_software

CARD = """<gpu id="00000000:{number:02}:00.0">
  <product_name>NVIDIA H100 80GB HBM3</product_name>
  <persistence_mode>{persistence}</persistence_mode>
  <mig_mode><current_mig>{mig}</current_mig></mig_mode>
  <gpu_reset_status><reset_required>No</reset_required></gpu_reset_status>
  <pci><pci_gpu_link_info><link_widths><max_link_width>16x</max_link_width>
    <current_link_width>{width}</current_link_width></link_widths></pci_gpu_link_info></pci>
  <clocks_event_reasons>
    <clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle>
    <clocks_event_reason_hw_thermal_slowdown>{hot}</clocks_event_reason_hw_thermal_slowdown>
  </clocks_event_reasons>
  <fb_memory_usage><total>81559 MiB</total><reserved>551 MiB</reserved><used>{used} MiB</used></fb_memory_usage>
  <compute_mode>Default</compute_mode>
  <ecc_errors><volatile><sram_correctable>7</sram_correctable><dram_uncorrectable>{ecc}</dram_uncorrectable></volatile></ecc_errors>
  <remapped_rows><remapped_row_pending>No</remapped_row_pending><remapped_row_failure>{failed}</remapped_row_failure></remapped_rows>
  <temperature><gpu_temp>88 C</gpu_temp></temperature>
  <fabric><state>{fabric}</state></fabric>
  <processes>{processes}</processes>
</gpu>"""
HEALTHY = {
    "persistence": "Enabled", "mig": "Disabled", "width": "16x", "hot": "Not Active", "used": 1, "ecc": 0,
    "failed": "No", "fabric": "Completed", "processes": "",
}  # fmt: skip
HOLDER = "<process_info><pid>4242</pid><process_name>python</process_name></process_info>"


def report(*cards: dict) -> str:
    """What `nvidia-smi -q -x` prints, reduced to what is asked of it."""
    body = "".join(CARD.format(number=number, **{**HEALTHY, **card}) for number, card in enumerate(cards))
    head = '<?xml version="1.0" ?><!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">'
    versions = "<driver_version>550.54.15</driver_version><cuda_version>12.4</cuda_version>"
    return f"{head}<nvidia_smi_log>{versions}{body}</nvidia_smi_log>"


def found(name: str, checks: list[Check]) -> Check:
    (check,) = [check for check in checks if check.name == name]
    return check


def test_healthy_gpus():
    gpus = gpu.judge_nvidia(report({}, {}))
    assert (gpus.number, gpus.driver_cuda) == (2, "12.4")
    assert {check.status for check in gpus.checks} == {"ok"}
    assert found("GPUs", gpus.checks).found == "2 × NVIDIA H100 80GB HBM3, 80 GiB"


@pytest.mark.parametrize(
    ("card", "name", "status", "words"),
    [
        (
            {"used": 61440, "processes": HOLDER},
            "GPU memory",
            "warn",
            "GPU 1: 60.0 of 80 GiB in use by process 4242 (python)",
        ),
        ({"ecc": 3}, "GPU errors", "fail", "GPU 1: 3 uncorrectable"),
        ({"failed": "Yes"}, "GPU errors", "fail", "no spare"),
        ({"hot": "Active"}, "GPU clocks", "warn", "held down by hw_thermal_slowdown at 88 C"),
        ({"mig": "Enabled"}, "GPU settings", "warn", "MIG is on"),
        ({"persistence": "Disabled"}, "GPU settings", "warn", "persistence"),
        ({"fabric": "In Progress"}, "GPU settings", "fail", "error 802"),
        ({"width": "4x"}, "GPU link", "warn", "PCIe 4x of 16x"),
    ],
)
def test_a_sick_gpu_is_named(card, name, status, words):
    check = found(name, gpu.judge_nvidia(report({}, card)).checks)
    assert check.status == status and words in check.found and check.fix


def test_a_driver_without_gpus():
    assert found("GPUs", gpu.judge_nvidia(report()).checks).status == "fail"


def fake_smi(folder, monkeypatch, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def card_on_the_bus(folder, vendor: str, kind: str):
    device = folder / "pci/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    (device / "class").write_text(kind + "\n")
    return folder / "pci"


def test_nvidia_smi_is_asked(tmp_path, monkeypatch):
    (tmp_path / "report.xml").write_text(report({}))
    fake_smi(tmp_path, monkeypatch, f"cat {tmp_path}/report.xml")
    assert gpu.find_gpus().number == 1


def test_nvidia_smi_without_its_driver(tmp_path, monkeypatch):
    fake_smi(tmp_path, monkeypatch, "echo Failed to initialize NVML: Driver/library version mismatch; exit 18")
    (check,) = gpu.find_gpus(card_on_the_bus(tmp_path, "0x10de", "0x030200"), tmp_path).checks
    assert check.status == "fail" and "version mismatch" in check.found
    assert {check.status for check in gpu.find_gpus(tmp_path / "none", tmp_path).checks} == {"skip"}  # a CPU node


@pytest.mark.parametrize(
    ("vendor", "kind", "status"),
    [
        ("0x10de", "0x030000", "fail"),
        ("0x1002", "0x120000", "fail"),
        ("0x1002", "0x030000", "skip"),
        ("0x8086", "0x030000", "skip"),
    ],
)
def test_a_card_without_a_driver(tmp_path, monkeypatch, vendor, kind, status):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.find_gpus(card_on_the_bus(tmp_path, vendor, kind), tmp_path).checks[0].status == status


def test_visible_gpus(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert [gpu.visible_gpus(e, tmp_path) for e in ({}, {"CUDA_VISIBLE_DEVICES": "1"})] == [2, 1]
    assert gpu.visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0


TORCH = {
    "torch": "2.13.0+cu128", "import_seconds": 2.0, "cuda": "12.8", "hip": None, "gloo": True, "gpus": 8, "nccl": "2.27.3",
    "capability": [9, 0], "archs": ["sm_80", "sm_90", "compute_90"], "ops": {"fused_adam": "buildable"},
    "flash": {"flash-attn 3": "3.0.0", "flash-attn 2": "missing"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "driver", "status", "words"),
    [
        ({}, "12.4", "ok", "built with CUDA 12.8"),
        ({"cuda": "13.0"}, "12.4", "fail", "the driver runs CUDA up to 12.4"),
        ({"cuda": None, "gpus": 0}, "12.4", "fail", "built for the CPU, but the host has 8 GPUs"),
        ({"gpus": 0, "cuda_error": "Error 802: system not yet initialized"}, "12.4", "fail", "Error 802"),
        ({"capability": [12, 0], "archs": ["sm_80", "sm_90"]}, "12.8", "fail", "not for this GPU's sm_120"),
        ({"capability": [8, 9]}, "12.4", "ok", ""),  # binaries of sm_80 run on 8.9
        ({"capability": [10, 0]}, "12.4", "ok", ""),  # PTX of compute_90 is compiled for 10.0
        ({"import_seconds": 95.0}, "12.4", "warn", "importing it took 95 s"),
    ],
)
def test_torch_against_driver_and_gpu(changes, driver, status, words):
    check = found("torch", judge_software({"software": {**TORCH, **changes}}, 8, driver))
    assert check.status == status and words in check.found


def test_flash_attention_and_deepspeed():
    good = judge_software({"software": TORCH}, 8, "12.4")
    assert found("flash-attn", good).found.startswith("3 (3.0.0)")
    broken = {**TORCH, "flash": {"flash-attn 2": "broken: undefined symbol"}, "ops": {"error": "ImportError: torch"}}
    bad = judge_software({"software": broken}, 8, "12.4")
    assert found("flash-attn", bad).status == "warn" and "undefined symbol" in found("flash-attn", bad).found
    assert found("DeepSpeed ops", bad).status == "fail"


def test_a_torch_that_does_not_load():
    (check,) = judge_software({"error": "OSError: libcudart.so.12", "stage": "importing torch"}, 8, "12.4")
    assert check.status == "fail" and "libcudart.so.12 (at `importing torch`)" in check.found


@pytest.mark.parametrize(
    ("printed", "cuda", "status"), [("11.8", "12.8", "warn"), ("12.4", "12.8", "ok"), ("12.4", None, "skip")]
)
def test_nvcc_against_torch(tmp_path, monkeypatch, printed, cuda, status):
    (tmp_path / "nvcc").write_text(f"#!/bin/sh\necho Cuda compilation tools, release {printed}, V{printed}.1\n")
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert found("nvcc", packages.compilers(cuda)).status == status


def test_torch_is_read_and_not_imported():
    import torch

    assert packages.torch_cuda() == torch.version.cuda
