"""Folders as sources: nothing that could be read is left out silently."""

import os
from pathlib import Path

import data.chunks
from data.__main__ import main
from data.manifest import Manifest


def prepare(source, out) -> Manifest:
    arguments = [
        "prepare",
        str(source),
        "--out",
        str(out),
        "--tokenizer",
        "bytes",
        "--split-valid",
        "0",
        "--workers",
        "1",
    ]
    assert main(arguments) == 0
    return Manifest.load(out)


def test_a_foreign_manifest_does_not_hide_its_folder(tmp_path):
    folder = tmp_path / "source/extension"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"name": "an extension"}')
    (folder / "a.txt").write_text("text beside it")
    assert prepare(tmp_path / "source", tmp_path / "out").documents >= 1


def test_a_dataset_of_ours_inside_its_source_is_not_read_again(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("some text")
    first = prepare(source, source / "out")
    assert prepare(source, tmp_path / "second").documents == first.documents == 1


def test_a_folder_or_file_that_may_not_be_read_is_named(tmp_path, monkeypatch, capsys):
    for name in ("open", "closed"):
        (tmp_path / "source" / name).mkdir(parents=True)
        (tmp_path / "source" / name / "a.txt").write_text(name)

    def closed(real):
        def call(path=".", *rest, **named):
            if Path(path).parts[-2:] in {("source", "closed"), ("open", "a.txt")}:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *rest, **named)

        return call

    arguments = ["prepare", str(tmp_path / "source"), "--out", str(tmp_path / "out"), "--tokenizer", "bytes"]
    monkeypatch.setattr(os, "scandir", closed(os.scandir))
    assert main(arguments) == 2
    assert f"{tmp_path}/source/closed: cannot be read: Permission denied" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(data.chunks, "open", closed(open), raising=False)
    assert main(arguments) == 2
    assert f"{tmp_path}/source/open/a.txt: cannot be read: Permission denied" in capsys.readouterr().err


def test_linked_folders_are_read_and_circles_end(tmp_path):
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage/a.txt").write_text("linked text")
    source = tmp_path / "source"
    source.mkdir()
    (source / "link").symlink_to(tmp_path / "storage")
    (source / "circle").symlink_to(source)
    assert prepare(source, tmp_path / "out").documents == 1
