"""Hostfiles: every wrong line is named with its number, and what is read is what DeepSpeed reads."""

import subprocess

import pytest
from deepspeed.launcher.runner import fetch_hostfile

from config import ConfigError
from launch import hostfile
from launch.__main__ import main
from launch.hostfile import commands, read_hostfile


def test_deepspeed_reads_the_same(tmp_path):
    path = tmp_path / "hosts.txt"
    path.write_text("# the big ones\nworker1 slots=8\n\nme@worker2\tslots=4  # half of it\n")
    assert read_hostfile(path) == dict(fetch_hostfile(str(path))) == {"worker1": 8, "me@worker2": 4}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("worker1 slot=8", "worker1 slot=8: did you mean `worker1 slots=8`?"),
        ("worker1 slots = 8", "did you mean `worker1 slots=8`?"),
        ("worker1 8", "did you mean `worker1 slots=8`?"),
        ("worker1 slots=8 max_slots=9", "did you mean `worker1 slots=8`?"),
        ("worker1", "expected `NAME slots=RANKS`"),
        ("worker1 slots=0", "expected `NAME slots=RANKS`, with at least one rank"),
        ("worker0 slots=2", "worker0 stands in line 1 already"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "hosts.txt"
    path.write_text(f"worker0 slots=8\n{line}\n")
    with pytest.raises(ConfigError) as error:
        read_hostfile(path)
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)


@pytest.mark.parametrize(("text", "message"), [(None, "No such file"), ("# nothing\n", "no hosts in it")])
def test_no_hosts(tmp_path, text, message):
    path = tmp_path / "hosts.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_hostfile(path)


def test_slurm_is_offered_for_equal_hosts_only(tmp_path):
    """As DeepSpeed's own check has it."""
    assert "--launcher slurm" in commands(tmp_path, {"a": 2, "b": 2}, ["gpt_debug"])
    assert "--launcher slurm" not in commands(tmp_path, {"a": 2, "b": 1}, ["gpt_debug"])


def answer(monkeypatch, code: int, stderr: str = "", resolves: bool = True) -> None:
    """Every host answers ssh with this exit code."""

    def resolve(*_):
        if not resolves:
            raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(hostfile.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(hostfile.shutil, "which", lambda _: "/usr/bin/pdsh")
    done = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr(hostfile.subprocess, "run", lambda *_, **__: done)


@pytest.mark.parametrize(
    ("answers", "code", "expected"),
    [
        ({"code": 0}, 0, "  ok  h1 slots=2\n"),
        ({"code": 91}, 1, "fail  h1 slots=2: no "),
        ({"code": 255, "stderr": "a\nroot@h1: Permission denied (publickey).\n"}, 1, "root@h1: Permission denied"),
        ({"code": 0, "resolves": False}, 1, "h1 slots=2: the name does not resolve (Name or service not known)"),
    ],
)
def test_each_host_is_judged(tmp_path, monkeypatch, capsys, answers, code, expected):
    path = tmp_path / "hosts.txt"
    path.write_text("h1 slots=2\nh2 slots=2\n")
    answer(monkeypatch, **answers)
    assert main(["hostfile", str(path)]) == code
    out = capsys.readouterr().out
    assert "2 host(s), 4 ranks" in out and expected in out
    assert "--node_rank I --master_addr h1 train.py RECIPE" in out


def test_what_cannot_be_a_name_does_not_resolve(tmp_path, capsys):
    path = tmp_path / "my hosts"
    path.write_bytes(b"worker..1 slots=2\nw\xff slots=2\nlocalhost slots=2\n")
    assert main(["hostfile", str(path), "--no-ssh"]) == 1
    out = capsys.readouterr().out
    assert "fail  worker..1 slots=2: the name does not resolve" in out and "fail  w\ufffd slots=2" in out
    assert "ok  localhost" in out and f"--hostfile '{path}' --no_ssh" in out


def test_no_time_to_answer_is_refused(tmp_path, capsys):
    assert main(["hostfile", str(tmp_path), "--timeout", "0"]) == 2
    assert "--timeout 0: give a number of seconds" in capsys.readouterr().err


def test_ranks_that_do_not_divide_the_batch(tmp_path, monkeypatch, capsys):
    path = tmp_path / "hosts.txt"
    path.write_text("h1 slots=3\n")
    answer(monkeypatch, 0)
    assert main(["hostfile", str(path), "gpt_debug"]) == 2
    assert "× 3 ranks = 12" in capsys.readouterr().err
    assert main(["hostfile", str(path), "gpt_debug", "batch.global_batch_size=12"]) == 0
    assert "12 rows = 4 micro × 1 accumulation × 3 ranks" in capsys.readouterr().out
