"""Hub ids without a hub: repositories in the hub's own cache, and what happens to those that are not there."""

from pathlib import Path

import pytest

import vlm
from vlm.errors import CheckpointError, ConfigError
from vlm.models.checkpoint import find_checkpoint, save
from vlm.models.hub import is_hub_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """`cached("me/cat-model", "model.json")`: the folder of a repository in the hub's cache, with these empty files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)

    def make(name: str, *files: str, revision: str = "main") -> Path:
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        folder = repository / "snapshots" / COMMIT
        folder.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / revision).write_text(COMMIT)
        for file in files:
            (folder / file).touch()
        return folder

    return make


def test_a_repository_of_a_checkpoint_is_loaded_by_its_id(cached, compose, config, picture):
    model = compose(language="tiny-phi")
    folder = cached("me/cat-model")
    folder.rmdir()
    save(model, config(language="tiny-phi"), folder)
    expected = model.chat([picture(1)], "What color?", max_new_tokens=5)
    assert vlm.load("me/cat-model", device="cpu", precision="fp32").chat([picture(1)], "What color?", max_new_tokens=5) == expected


def test_a_revision_is_asked_for(cached):
    folder = cached("me/cat-model", "model.json", "weights.safetensors", revision="v2")
    assert find_checkpoint("me/cat-model@v2") == folder
    with pytest.raises(CheckpointError, match="'me/cat-model' is no run or folder here"):
        find_checkpoint("me/cat-model")


def test_a_repository_that_cannot_be_reached_is_named_in_one_line(cached):
    with pytest.raises(
        CheckpointError, match=r"^'me/cat-model' is no run or folder here, and as a hub id it could not be fetched \(.*[^.]\)\. Check"
    ) as error:
        vlm.load("me/cat-model")
    assert "\n" not in str(error.value)


def test_a_repository_of_another_layout_points_to_the_import(cached):
    cached("llava-hf/llava", "config.json", "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"'llava-hf/llava' has no model.json, so it is no checkpoint of vlm. Turn other layouts .* `vlm import`"
    ):
        vlm.load("llava-hf/llava")


def test_a_repository_without_weights_is_named(cached):
    cached("me/half", "model.json")
    with pytest.raises(CheckpointError, match=r"'me/half' lacks weights.safetensors"):
        vlm.load("me/half")


@pytest.mark.parametrize("name", ["runs/demo", "mine", "/a/b", "./a/b", "a/b/c", "~/a", "kept/model", "a/..", "clip-b32-224"])
def test_paths_and_prefixes_are_no_hub_ids(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    assert not is_hub_id(name, run_root=Path("runs"))


def test_a_prefix_below_the_run_root_is_never_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="There is no run that begins with 'nope' in runs"):
        vlm.load("runs/nope")
