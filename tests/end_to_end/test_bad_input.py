"""What a user can get wrong, through the whole command: one line with the remedy on standard error, exit code 2, no traceback."""

import errno
import json
import shutil

import pytest
from tiny_data import turns, write

import vlm
from vlm.__main__ import main


@pytest.fixture
def fails(capfd, data, tmp_path, monkeypatch):
    """`fails("pretrain", "tiny/align", ...)`: the one line that the command ends with."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        argv = [str(data) if word == "DATA" else str(word) for word in argv]
        capfd.readouterr()
        assert main(argv) == 2
        said = capfd.readouterr()
        assert "Traceback" not in said.err + said.out
        (line,) = [line for line in said.err.splitlines() if line.startswith(f"vlm {argv[0]}:")]
        assert said.err.splitlines()[-1] == line
        return line

    return run


ALIGN = ("pretrain", "tiny/align", "--stage.dataset", "DATA")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ((*ALIGN, "--model.vision", "tiny-siglp"), "No vision backbone named 'tiny-siglp'. Did you mean 'tiny-siglip'"),
        ((*ALIGN, "--model.language", "tiny-lama"), "No language model named 'tiny-lama'. Did you mean 'tiny-llama'"),
        ((*ALIGN, "--model.connector", "mlp2x-gelo"), "No connector named 'mlp2x-gelo'. Did you mean 'mlp2x-gelu'"),
        ((*ALIGN, "--stage.template", "vicuna-v2"), "No chat template named 'vicuna-v2'. Did you mean 'vicuna-v1'"),
        (("pretrain", "tiny/aline"), "No preset named 'tiny/aline'. Did you mean 'tiny/align'"),
        (("pretrain", "tiny/align", "--stage.dataset", "easy-vga"), "No dataset named 'easy-vga'. Did you mean 'easy-vqa'"),
        (("preprocess", "--dataset-id", "easy-vga"), "No dataset named 'easy-vga'. Did you mean 'easy-vqa'"),
        (("pretrian",), "No command named 'pretrian'. Did you mean 'pretrain'"),
        (("inspect", "tiny-siglp"), "No part, dataset or preset named 'tiny-siglp'. Did you mean 'tiny-siglip'"),
        (("list", "vison"), "Did you mean 'vision'"),
    ],
)
def test_unknown_name_gets_the_nearest(fails, argv, named):
    assert named in fails(*argv)


@pytest.mark.parametrize("part", ["vision", "language"])
def test_missing_weights_folder_is_named(fails, part):
    line = fails(*ALIGN, f"--model.{part}-source", "./weights")
    assert "./weights" in line
    assert f"--model.{part}-source" in line


@pytest.mark.parametrize("part", ["vision", "language"])
def test_folder_without_weights_is_named(fails, part, tmp_path):
    (tmp_path / "weights").mkdir()
    assert "weights" in fails(*ALIGN, f"--model.{part}-source", tmp_path / "weights")


def test_prepared_dataset_that_is_missing_gets_the_command(fails):
    line = fails("pretrain", "tiny/align")
    assert "The dataset 'easy-vqa' is not prepared below data. Run: vlm preprocess --dataset-id easy-vqa --root-dir data" in line


def test_towers_other_than_those_of_the_run_are_refused(fails, tiny, monkeypatch):
    run_dir = vlm.train(tiny("align", max_steps=1))
    monkeypatch.setattr("vlm.backbones.vision.tiny.SEED", 1)
    line = fails("chat", run_dir, "hello")
    assert "The vision weights are not those that" in line
    assert " --vision-source" in line  # as vlm chat has it


def test_damaged_checkpoint_is_named(fails, tiny):
    run_dir = vlm.train(tiny("align", max_steps=1))
    weights = run_dir / "checkpoints" / "step-000001" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "weights.safetensors cannot be read" in fails("chat", run_dir, "hello")
    weights.unlink()
    assert "weights.safetensors cannot be read" in fails("chat", run_dir, "hello")


def test_run_without_a_checkpoint_is_named(fails, tiny):
    run_dir = vlm.train(tiny("align", max_steps=1))
    shutil.rmtree(run_dir / "checkpoints")
    assert "checkpoint" in fails("chat", run_dir, "hello")


def test_tampered_dataset_has_the_wrong_hash(fails, tmp_path):
    assert main(["preprocess", "--dataset-id", "easy-vqa-captions", "--root-dir", str(tmp_path / "data")]) == 0
    rows = tmp_path / "data" / "easy-vqa-captions" / "samples-train.parquet"
    rows.write_bytes(rows.read_bytes()[:-20] + b"x" * 20)
    line = fails("pretrain", "tiny/align", "--stage.dataset", "easy-vqa-captions", "--data-root", tmp_path / "data")
    assert "samples-train.parquet has SHA-256" in line
    assert "Prepare the dataset again with --overwrite" in line


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("broken", [b"no picture", b"", None], ids=["corrupt", "empty", "missing"])
def test_picture_that_cannot_be_read_is_named(fails, tmp_path, broken, num_workers):
    data = write(tmp_path / "d")
    if broken is None:
        (data.parent / "blue.png").unlink()
    else:
        (data.parent / "blue.png").write_bytes(broken)
    line = fails("pretrain", "tiny/align", "--stage.dataset", data, "--stage.num-workers", num_workers)
    assert "blue.png" in line
    assert "There is no image file" in line if broken is None else "Replace the file, or leave it out" in line


@pytest.mark.parametrize(
    ("conversations", "named"),
    [
        ([], "has no row: its array is empty"),
        ([{"id": "a", "conversations": turns("only a question")}], "row 1: the answer is missing"),
        ([{"id": "a", "conversations": turns("<image>?", "yes")}], "placeholder"),
        ([{"id": "a", "image": ["red.png", "red.png"], "conversations": turns("<image>?", "yes")}], "placeholder"),
        ([{"id": "far", "conversations": turns("why? " * 600, "because")}], "Sample 'far': The first exchange"),
    ],
    ids=["empty", "no answer", "no picture", "too many pictures", "too long"],
)
def test_data_that_does_not_fit_is_named(fails, tmp_path, conversations, named):
    assert named in fails("pretrain", "tiny/align", "--stage.dataset", write(tmp_path / "d", conversations))


def test_sequence_longer_than_the_setting_gets_the_setting(fails):
    line = fails(*ALIGN, "--stage.max-length", 30)
    assert "and 30 are allowed. Raise --stage.max-length" in line


def test_context_longer_than_the_model_is_refused(fails):
    assert "tiny-llama reads 512 tokens" in fails(*ALIGN, "--stage.max-length", 513)


def test_batches_that_do_not_divide_get_those_that_do(fails):
    line = fails(*ALIGN, "--stage.global-batch-size", 10)
    assert "Nearest that fit: --stage.global-batch-size 8 or 12, or --stage.per-device-batch-size 5." in line


def test_run_root_without_permission_is_refused_before_anything_is_built(fails, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm.training.generative.build", lambda *_, **__: pytest.fail("built"))
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for root in (tmp_path / "file", "/proc/runs"):
        assert "cannot be written" in (line := fails(*ALIGN, "--run-root", root))
        assert "choose another --run-root" in line


def test_full_disk_while_saving_is_one_line(fails, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    line = fails(*ALIGN)
    assert "step-000004 could not be written" in line
    assert "No space left on device. Free space or choose another --run-root" in line


def test_existing_run_gets_the_ways_out(fails, tiny, tmp_path):
    vlm.train(tiny("align", max_steps=1))
    line = fails(*ALIGN, "--run-root", tmp_path / "runs")
    assert "exists. Use --resume auto to go on with it, --overwrite to delete it, another --seed, or another --model.name." in line


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda values: values | {"format_version": 99}, "format_version 99; this vlm reads up to 1"),
        (lambda values: values | {"sead": 1}, "named 'sead'. Did you mean 'seed'"),
    ],
)
def test_stored_config_of_another_version_is_refused(fails, tiny, change, named):
    path = vlm.train(tiny("align", max_steps=1)) / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    assert named in fails("pretrain", path, "--overwrite")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_device_that_is_missing_is_refused(fails, device, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert f"--device {device} does not exist on this machine. Available: cpu." in fails(*ALIGN, "--device", device)


def test_regular_expression_of_targets_that_match_nothing_gets_the_layers(fails):
    line = fails("pretrain", "tiny/finetune", "--stage.dataset", "DATA", "--model.lora.language.targets", "nothing")
    assert "match no linear layer. Linear layers of this model: down_proj" in line


def test_rate_for_a_connector_without_weights_is_refused(fails):
    assert "vlm pretrain:" in fails(*ALIGN, "--model.connector", "identity")


def test_wrong_flag_is_exit_code_2_with_the_nearest(capfd, data):
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "tiny/align", "--stage.lr.conector", "1e-3"])
    assert stop.value.code == 2
    assert "--stage.lr.connector" in capfd.readouterr().err
