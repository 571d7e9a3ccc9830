import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_data import metrics, turns, write

import vlm
from vlm.conf.idle import idle_settings
from vlm.conf.schema import LearningRates, LoRAConfig, TrackingConfig, TrainConfig
from vlm.conf.serialize import read_config
from vlm.distributed.launch import choose_precision
from vlm.errors import CheckpointError, ConfigError, DataFormatError
from vlm.training.stage import is_due


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_run_folder_holds_config_metrics_and_checkpoints(tiny, tmp_path):
    run_dir = vlm.train(tiny("align", max_steps=4, checkpoint_every=2))
    assert run_dir == tmp_path / "runs" / "tiny+align+x7"
    names = ("model.json", "weights.safetensors", "run.json", "files.json", "state/.metadata", "state/__0_0.distcp")
    steps = [f"checkpoints/step-{step:06d}/{name}" for step in (2, 4) for name in names]
    assert files(run_dir) == {"config.json", "metrics.jsonl", *steps}
    manifest = json.loads((run_dir / "checkpoints" / "step-000004" / "model.json").read_text(encoding="utf-8"))
    assert manifest["format_version"] == 1
    assert manifest["stored"] == ["connector"]
    assert set(manifest["fingerprints"]) == {"vision", "language"}
    assert [path.name for path in run_dir.parent.iterdir()] == [run_dir.name]


def test_existing_run_folder_is_refused_unless_overwrite(tiny):
    run_dir = vlm.train(tiny("align", max_steps=1))
    (run_dir / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"Run folder .*tiny\+align\+x7 exists. Use --resume auto"):
        vlm.train(tiny("align", max_steps=1))
    assert (run_dir / "notes.txt").exists()
    vlm.train(tiny("align", max_steps=1, overwrite=True))
    assert not (run_dir / "notes.txt").exists()


def test_metrics_have_a_line_a_step_and_the_validation(tiny, data):
    run_dir = vlm.train(tiny("align", validation=str(data), tracking=TrackingConfig(num_samples=3, sample_every=2)))
    lines = metrics(run_dir)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 4]
    (first, last) = [line for line in lines if "samples" in line]
    assert (first["step"], last["step"]) == (2, 4)
    assert [sample["question"] for sample in last["samples"]] == ["<image>\nWhat color?"] * 3
    assert [sample["reference"] for sample in last["samples"]] == [f"The color is {color}." for color in ("red", "green", "blue")]
    assert last["samples"][0]["image"].endswith("red.png")


def test_validation_loss_is_the_mean_over_the_tokens_of_the_samples_shown(tiny, data):
    config = tiny("align", validation=str(data), tracking=TrackingConfig(num_samples=8), max_steps=1, lr=LearningRates(connector=1e-12))
    lines = metrics(vlm.train(config))
    (validation,) = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert validation == pytest.approx(lines[0]["loss"], abs=1e-4)  # the same eight samples, weights all but unchanged


def test_generation_metrics_stand_beside_the_validation_loss_on_request(tiny, data):
    config = tiny("align", validation=str(data), tracking=TrackingConfig(num_samples=4, generation_metrics=True), max_steps=1)
    lines = metrics(vlm.train(config))
    (validation,) = [line for line in lines if "validation_loss" in line]
    (samples,) = [line["samples"] for line in lines if "samples" in line]
    right = [sample["generated"].lower().rstrip(".") == sample["reference"].lower().rstrip(".") for sample in samples]
    assert validation["validation/exact_match"] == sum(right) / 4
    assert 0 <= validation["validation/token_f1"] <= 1
    assert "--tracking.generation-metrics has no effect without --stage.validation." in idle_settings(tiny("align", tracking=config.tracking))


def test_tensorboard_has_the_keys_of_metrics_jsonl(tiny, data):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking = TrackingConfig(trackers=("jsonl", "tensorboard"), num_samples=2, generation_metrics=True)
    run_dir = vlm.train(tiny("align", validation=str(data), tracking=tracking, max_steps=2))
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    keys = {key for line in metrics(run_dir) for key in line if key not in ("step", "samples")}
    assert {"loss", "lr/connector", "validation_loss", "validation/token_f1"} <= keys == set(events.Tags()["scalars"])
    assert events.Tags()["tensors"] == ["samples/text_summary"]
    assert len(events.Tags()["images"]) == 2


def test_log_every_thins_out_the_lines_but_keeps_the_last(tiny):
    run_dir = vlm.train(tiny("align", max_steps=5, tracking=TrackingConfig(log_every=2)))
    assert [line["step"] for line in metrics(run_dir)] == [2, 4, 5]


def test_epochs_say_how_many_steps(tiny):
    run_dir = vlm.train(tiny("align", max_steps=None, epochs=1.5, global_batch_size=4))
    assert len(metrics(run_dir)) == 3  # 8 samples, one and a half times, four a step


def test_weights_are_stored_before_a_broken_validation_picture_is_met(tiny, tmp_path):
    held_out = write(tmp_path / "held_out")
    (held_out.parent / "red.png").write_bytes(b"no picture")
    config = tiny("align", validation=str(held_out))
    with pytest.raises(DataFormatError, match=r"red.png cannot be read"):
        vlm.train(config)
    assert (config.run_dir / "checkpoints" / "step-000004" / "model.json").is_file()


def test_length_beyond_the_context_is_refused_before_anything_is_built(tiny, monkeypatch):
    monkeypatch.setattr("vlm.training.generative.build", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(ConfigError, match=r"--stage.max-length is 4096, but tiny-llama reads 512 tokens"):
        vlm.train(tiny("align", max_length=4096))


@pytest.mark.parametrize("tower", ["vision", "language"])
def test_lora_without_a_rate_is_refused_before_anything_is_loaded(tiny, tower, monkeypatch):
    monkeypatch.setattr("vlm.models.build.build_language", lambda *_, **__: pytest.fail("loaded"))
    config = tiny("align")
    config = replace(config, model=replace(config.model, lora=replace(config.model.lora, **{tower: LoRAConfig(rank=2)})))
    with pytest.raises(ConfigError, match=rf"--model.lora.{tower}.rank is set, but --stage.lr.{tower} is not: the adapter would never change"):
        vlm.train(config)


def test_settings_without_effect_are_named(tiny, caplog):
    with caplog.at_level(logging.WARNING, logger="vlm"):
        vlm.train(tiny("align", max_steps=1, decay_ratio=0.5))
    assert "--stage.decay-ratio has no effect with --stage.schedule cosine" in caplog.text


def test_large_numbers_have_commas(tiny, caplog):
    config = tiny("align", max_steps=1)
    many = Path(config.stage.dataset).with_name("many.json")
    many.write_text(json.dumps(200 * json.loads(Path(config.stage.dataset).read_text(encoding="utf-8"))), encoding="utf-8")
    config = replace(config, stage=replace(config.stage, dataset=str(many), group_by_length=True))
    with caplog.at_level(logging.INFO, logger="vlm"):
        vlm.train(config)
    assert "counting the tokens of 1,600 samples" in caplog.text and "1,600 samples, 1 steps of 8" in caplog.text


def test_sizes_of_the_parts_are_said(tiny, caplog):
    with caplog.at_level(logging.INFO, logger="vlm"):
        vlm.train(tiny("finetune", max_steps=1))
    assert "tiny+finetune+x7: 8 samples, 1 steps of 8, fp32 on cpu x 1" in caplog.text
    line = next(line for line in caplog.messages if line.split()[:1] == ["language"])
    assert line.split() == ["language", "44,064", "896", "2.03", "%", "fp32", *["lora", "of", "rank", "4,", "scale", "2,", "on", "4", "layers"]]
    assert any(line.split()[:5] == ["all", "57,920", "2,496", "4.31", "%"] for line in caplog.messages)


def test_full_disk_keeps_earlier_checkpoints_and_says_what_to_do(tiny, monkeypatch):
    import safetensors.torch

    saved = safetensors.torch.save_file

    def save_once(state, path, **options):
        if "000002" in str(path):
            raise OSError(28, "No space left on device")
        saved(state, path, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", save_once)
    config = tiny("align", checkpoint_every=1)
    with pytest.raises(
        CheckpointError, match=r"step-000002 could not be written: .*No space left on device. Free space or choose another --run-root"
    ):
        vlm.train(config)
    assert [path.name for path in (config.run_dir / "checkpoints").iterdir()] == ["step-000001"]


def test_weights_that_the_last_step_broke_are_never_saved(tiny):
    """Weight decay multiplies weights by 1 - rate * decay, which overflows here, behind a finite loss and gradient."""
    config = tiny("align", max_steps=1, schedule="constant", warmup_ratio=0.0, weight_decay=1e30, lr=LearningRates(connector=1e10))
    with pytest.raises(
        ConfigError, match=r"Step 1: the update left values in 'connector.* not finite, so nothing is saved. Lower the learning rates"
    ):
        vlm.train(config)
    assert list((config.run_dir / "checkpoints").iterdir()) == []


def test_ridge_start_of_a_connector_without_a_last_layer_is_refused_before_anything_is_built(tiny, monkeypatch):
    monkeypatch.setattr("vlm.training.generative.build", lambda *_, **__: pytest.fail("built"))
    config = tiny("align")
    config = replace(config, model=replace(config.model, vision="tiny-fused", connector="identity", connector_init="ridge"))
    with pytest.raises(ConfigError, match="connector_init ridge needs a connector that ends in a linear layer; Identity does not"):
        vlm.train(config)
    assert not config.run_dir.exists()


def test_run_that_failed_before_its_first_checkpoint_is_replaced_by_the_corrected_one(tiny, monkeypatch, caplog):
    config = tiny("align", max_steps=1)
    with monkeypatch.context() as broken:
        broken.setattr("vlm.training.stage.train", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            vlm.train(config)
    assert (config.run_dir / "config.json").is_file()
    with caplog.at_level(logging.INFO, logger="vlm"):
        vlm.train(config)
    assert f"run folder {config.run_dir} is of a run that ended before its first step: it is replaced" in caplog.text
    assert (config.run_dir / "checkpoints" / "step-000001" / "model.json").is_file()


def test_stored_config_names_the_checkpoint_and_the_precision_in_use(tiny):
    aligned = vlm.train(tiny("align", max_steps=1))
    run_dir = vlm.train(tiny("finetune", max_steps=1, init_from=Path("tiny+al"), precision="auto"))
    stored = read_config(run_dir / "config.json", TrainConfig)
    assert stored.init_from == aligned / "checkpoints" / "step-000001"
    assert stored.precision == choose_precision("auto", torch.device("cpu"))


def test_a_step_is_due_at_every_nth_and_at_the_last():
    assert [step for step in range(1, 8) if is_due(step, 3, 7)] == [3, 6, 7]
    assert [step for step in range(1, 8) if is_due(step, None, 7)] == [7]


def test_sources_of_a_mixture_have_losses_and_counts_of_their_own(tiny, data, tmp_path):
    other = write(tmp_path / "other", [{"id": str(i), "conversations": turns(f"Say {i}.", "word " * (i + 1))} for i in range(3)])
    lines = metrics(vlm.train(tiny("finetune", dataset=f"{data}:0.75,{other}:0.25", max_steps=6)))
    steps = [line for line in lines if "loss" in line]
    counts = {name: sum(line[f"num_samples/{name}"] for line in steps) for name in (str(data), str(other))}
    assert counts == pytest.approx({str(data): 0.75 * 48, str(other): 0.25 * 48}, abs=3)
    for line in steps:
        parts = [line[f"loss/{name}"] for name in counts if f"loss/{name}" in line]
        assert min(parts) - 1e-4 <= line["loss"] <= max(parts) + 1e-4
        assert sum(line[f"num_samples/{name}"] for name in counts) == line["num_samples"] == 8


def test_packed_run_says_how_full_its_rows_are_and_counts_rows(tiny, caplog):
    with caplog.at_level("INFO"):
        lines = metrics(vlm.train(tiny("finetune", pack_length=512, max_steps=2, global_batch_size=2, per_device_batch_size=2)))
    assert "2 steps of 2 rows" in caplog.text
    assert "of the slots hold tokens" in caplog.text
    assert all(0 <= line["padding_share"] < 1 for line in lines if "loss" in line)


def test_conversations_that_are_too_long_are_truncated_counted_and_said_once(tiny, tmp_path, caplog):
    long = turns("Why?", "Because. " * 5, "And then?", "More. " * 40)
    data = write(tmp_path / "long", [{"id": str(i), "conversations": long} for i in range(8)])
    with caplog.at_level("INFO"):
        lines = metrics(vlm.train(tiny("finetune", dataset=str(data), max_steps=3, max_length=200)))
    assert [line["num_truncated"] for line in lines if "loss" in line] == [8, 8, 8]
    assert caplog.text.count("are too long, and lose their last turns or words") == 1
    assert "24 conversations were truncated" in caplog.text
