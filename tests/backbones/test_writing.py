"""Folders that are there whole or not at all, and the permissions of what is in them."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.backbones.writing import new_folder, without_remarks, write_tensors
from vlm.errors import CheckpointError


@pytest.fixture(params=[0o022, 0o027, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path) -> int:
    return path.stat().st_mode & 0o777


def test_weights_have_the_permissions_of_any_new_file(umask, tmp_path):
    write_tensors({"a": torch.ones(3, 2).T}, tmp_path / "one.safetensors")
    with new_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        save_file({"a": torch.ones(2)}, folder / "inner" / "two.safetensors")  # as libraries do
    assert mode(tmp_path / "one.safetensors") == mode(tmp_path / "out" / "inner" / "two.safetensors") == 0o666 & ~umask
    assert torch.equal(load_file(tmp_path / "one.safetensors")["a"], torch.ones(2, 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.safetensors", "out"]


def test_folder_is_there_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"
    for error in (OSError("disk\nis full"), KeyboardInterrupt()):
        with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt), new_folder(out) as folder:
            (folder / "half").write_text("x", encoding="utf-8")
            assert not out.exists()
            raise error
        assert not list(tmp_path.iterdir())
    with new_folder(out):
        pass
    with pytest.raises(CheckpointError, match=r"exists. Name a folder that does not exist yet"), new_folder(out):
        pass


def test_killed_process_leaves_no_folder_and_the_next_one_begins_anew(tmp_path):
    out = tmp_path / "out"
    lines = ["import os, signal, sys", "from pathlib import Path", "from vlm.backbones.writing import new_folder"]
    lines += ["with new_folder(Path(sys.argv[1])) as folder:", "    (folder / 'half').write_text('x')", "    os.kill(os.getpid(), signal.SIGKILL)"]
    assert subprocess.run([sys.executable, "-c", "\n".join(lines), str(out)], check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    with new_folder(out) as folder:
        (folder / "whole").write_text("x", encoding="utf-8")
    assert [path.name for path in out.iterdir()] == ["whole"] and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12 - 3 * 10**9, 3 * 10**9))
    with (
        pytest.raises(CheckpointError, match=r"14.2 GB are to be written, and the disk of .* has 3 GB left. Free space"),
        new_folder(tmp_path / "out", num_bytes=14_200_000_000),
    ):
        pytest.fail("entered")
    assert not list(tmp_path.iterdir())


def test_libraries_are_muted_and_heard_again(caplog):
    caplog.set_level(logging.INFO)
    log = logging.getLogger("a.library")
    with without_remarks():
        log.info("saved to out.tmp")
        log.warning("the disk is slow")
    log.info("after")
    assert [record.getMessage() for record in caplog.records] == ["the disk is slow", "after"]
