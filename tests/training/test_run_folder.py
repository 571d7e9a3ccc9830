import pytest

from vlm.conf.schema import TrainConfig
from vlm.conf.serialize import read_config
from vlm.errors import ConfigError
from vlm.training import run_folder


def test_check_leaves_nothing_behind(tiny):
    config = tiny()
    run_folder.check(config)
    assert list(config.run_root.iterdir()) == []


@pytest.mark.parametrize("root", ["a_file", "a_file/below", "/proc/runs"])
def test_run_root_that_cannot_be_written_is_refused(tiny, tmp_path, root):
    (tmp_path / "a_file").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"Run folder .* cannot be written: .*. Make it writable, or choose another --run-root."):
        run_folder.check(tiny(run_root=tmp_path / root))


def test_stored_config_is_the_run_without_the_permission_to_overwrite(tiny):
    folder = run_folder.create(tiny(overwrite=True))
    assert read_config(folder / "config.json", TrainConfig) == tiny()


@pytest.mark.parametrize("contents", [{}, {"config.json": "{}"}, {"notes.txt": "x"}])
def test_folder_without_a_config_of_ours_is_refused(tiny, contents):
    config = tiny()
    config.run_dir.mkdir(parents=True)
    for name, text in contents.items():
        (config.run_dir / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"exists. Use --resume auto"):
        run_folder.check(config)


@pytest.mark.parametrize("left", ["checkpoints/step-000001/", "checkpoints/step-000001.tmp/", "metrics.jsonl", "wandb/"])
def test_folder_with_more_than_a_config_is_in_use(tiny, left):
    config = tiny()
    folder = run_folder.create(config)
    (folder / "metrics.jsonl").touch()
    run_folder.check(config)
    (folder / left).mkdir() if left.endswith("/") else (folder / left).write_text('{"step": 1}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"exists. Use --resume auto"):
        run_folder.check(config)


def test_checkpoints_are_numbered_by_step(tmp_path):
    assert run_folder.checkpoint_folder(tmp_path, 500) == tmp_path / "checkpoints" / "step-000500"
