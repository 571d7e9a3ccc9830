"""Weights on disk: what comes back, what is refused, and what a failed write leaves behind."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.backbones.lora import adapted_layers
from vlm.connectors.base import ridge_start
from vlm.errors import CheckpointError, ConfigError, UnknownNameError
from vlm.models import checkpoint
from vlm.models.checkpoint import find_checkpoint, load, load_trained, open_model, read_manifest, save

TALK = [["<image>\nWhat color is the circle?", "blue"], ["Is there a red square?", "No"]]


def stir(model: torch.nn.Module) -> None:
    """What training does: move every trained weight."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)


@torch.no_grad()
def logits(model, batch):
    return model.eval().language.logits(model.hidden(batch).flatten(0, 1))


BOTH = {"rank": 4, "vision_rank": 2}
SETTINGS = {
    "vision adapter": ({"vision_rank": 3}, ("vision", "connector")),
    "both adapters": (BOTH, ("vision", "connector", "language")),
    "rslora": (BOTH | {"kind": "rslora"}, ("vision", "connector", "language")),
    "dora": (BOTH | {"kind": "dora", "vision": "tiny-fused"}, ("vision", "connector", "language")),
    "adapter beside a whole tower": ({"rank": 4}, ("vision", "connector", "language")),
    "connector": ({}, ("connector",)),
    "adapter": ({"rank": 4}, ("connector", "language")),
    "whole language model": ({}, ("connector", "language")),
    "tied language model": ({"language": "tiny-qwen2"}, ("connector", "language")),
    "vision tower": ({}, ("vision", "connector")),
    "everything": ({"vision": "tiny-fused", "language": "tiny-phi", "connector": "linear"}, ("vision", "connector", "language")),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_loaded_model_has_the_logits_of_the_saved_one(setting, compose, config, chat_batch, tmp_path):
    parts, trained = SETTINGS[setting]
    model = compose(trained=trained, **parts)
    untrained = compose(**parts)
    stir(model)
    save(model, config(**parts), tmp_path / "step")
    loaded, batch = load(tmp_path / "step", precision="fp32"), chat_batch(model, TALK)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert not torch.allclose(logits(untrained, batch), logits(model, batch), atol=1e-3)
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert not loaded.training


HELD = {
    "connector": {"connector"},
    "adapter": {"connector", "language"},
    "vision adapter": {"vision", "connector"},
    "dora": {"vision", "connector", "language"},
}


@pytest.mark.parametrize(("setting", "parts"), HELD.items())
def test_a_checkpoint_holds_what_was_trained_and_nothing_else(setting, parts, compose, config, tmp_path):
    settings, trained = SETTINGS[setting]
    model = compose(trained=trained, **settings)
    save(model, config(**settings), tmp_path / "step")
    stored = load_file(tmp_path / "step" / "weights.safetensors")
    wanted = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert set(stored) == wanted
    size = (tmp_path / "step" / "weights.safetensors").stat().st_size
    assert size < 4 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad) + 200 * len(wanted)  # fp32, and a header
    assert set(read_manifest(tmp_path / "step").stored) == parts


def test_standardization_fitted_by_the_ridge_start_is_stored(compose, config, chat_batch, tmp_path):
    model = compose(connector="linear", trained=("connector",))
    generator = torch.Generator().manual_seed(0)
    ridge_start(model.connector, torch.randn(64, 16, 16, generator=generator) * 3 + 1, torch.randn(64, 32, generator=generator))
    save(model, config(connector="linear"), tmp_path / "step")
    loaded, batch = load(tmp_path / "step", precision="fp32"), chat_batch(model, TALK)
    assert loaded.connector.standardize.mean.abs().min() > 0
    assert torch.equal(logits(loaded, batch), logits(model, batch))


@pytest.fixture
def saved(compose, config, tmp_path) -> Path:
    """A checkpoint of a trained connector."""
    save(compose(trained=("connector",)), config(), tmp_path / "step")
    return tmp_path / "step"


def edit(folder: Path, **values) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_another_tower_is_refused(saved, compose, tmp_path):
    other = compose().language
    with torch.no_grad():
        other.model.lm_head.weight += 1
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"language weights are not those .* --model.language-source"):
        load(saved, precision="fp32", sources={"language_source": str(tmp_path / "other")})


def test_towers_may_come_from_another_folder(saved, compose, chat_batch, tmp_path):
    model = compose()
    model.language.model.save_pretrained(tmp_path / "copy")
    model.language.tokenizer.save_pretrained(tmp_path / "copy")
    loaded, batch = open_model(saved, device="cpu", precision="fp32", language_source=str(tmp_path / "copy")), chat_batch(model, TALK)
    assert torch.equal(logits(loaded, batch), logits(load(saved, precision="fp32"), batch))


def test_weights_of_another_shape_are_refused_with_both_shapes(saved, compose):
    model = compose(connector="fused-mlp")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"'connector\.body\.0\.\w+' has shape \(32.*\), this model needs \(64.*\)"):
        load_trained(model, saved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_adapter_does_not_load_into_a_model_without_one(compose, config, tmp_path):
    save(compose(rank=2, trained=("connector", "language")), config(rank=2), tmp_path / "step")
    with pytest.raises(CheckpointError, match=r"has a LoRA adapter, this model has none: set --model.lora.language.rank"):
        load_trained(compose(), tmp_path / "step")


def test_an_adapter_of_another_rank_is_refused(compose, config, tmp_path):
    save(compose(rank=2, trained=("connector", "language")), config(rank=2), tmp_path / "step")
    with pytest.raises(CheckpointError, match=r"lora_A.*has shape \(2, 32\), this model needs \(4, 32\)"):
        load_trained(compose(rank=4, trained=("connector", "language")), tmp_path / "step")


def test_weights_of_a_connector_load_beside_a_new_adapter(saved, compose):
    model = compose(rank=2, trained=("connector", "language"))
    assert load_trained(model, saved) == ["connector: 4 tensors, 1,600 values"]  # 16 x 32 + 32 + 32 x 32 + 32


def test_whole_language_weights_beside_a_new_adapter_are_loaded_under_it(compose, config, chat_batch, tmp_path):
    model = compose(trained=("connector", "language"))
    stir(model)
    save(model, config(), tmp_path / "step")
    adapted = compose(rank=2, trained=("connector", "language"))
    load_trained(adapted, tmp_path / "step")
    batch = chat_batch(model, TALK)
    torch.testing.assert_close(logits(adapted, batch), logits(model, batch))
    stir(adapted)
    save(adapted, config(rank=2), tmp_path / "next")
    torch.testing.assert_close(logits(load(tmp_path / "next", precision="fp32"), batch), logits(adapted, batch))


def test_a_missing_weights_file_is_one_line(saved):
    (saved / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights.safetensors cannot be read") as error:
        load(saved, precision="fp32")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 5, 100, -50])
def test_a_truncated_weights_file_is_one_line(saved, size):
    file = saved / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"weights.safetensors cannot be read.*Use another checkpoint") as error:
        load(saved, precision="fp32")
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_lacks_a_trained_tensor_is_refused(saved):
    file = saved / "weights.safetensors"
    tensors = load_file(file)
    del tensors["connector.readout.bias"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"lacks 1 of the tensors .*connector\.readout\.bias"):
        load(saved, precision="fp32")


ADAPTERS = {"rank": 2, "vision_rank": 2}


@pytest.fixture
def adapted(compose, config, tmp_path) -> Path:
    """A checkpoint of trained adapters on both towers."""
    model = compose(trained=("vision", "connector", "language"), **ADAPTERS)
    stir(model)
    save(model, config(**ADAPTERS), tmp_path / "step")
    return tmp_path / "step"


def rewrite(folder: Path, change) -> None:
    """Replace the stored tensors by what `change` makes of them, None leaving one out."""
    tensors = load_file(folder / "weights.safetensors")
    save_file({name: new for name, old in tensors.items() if (new := change(name, old)) is not None}, folder / "weights.safetensors")


@pytest.mark.parametrize("tower", ["vision", "language"])
def test_an_adapter_that_changes_nothing_is_refused_with_its_keys(adapted, tower):
    rewrite(adapted, lambda name, old: old * 0 if name.startswith(tower) and "lora_B" in name else old)
    with pytest.raises(
        CheckpointError, match=rf"The adapter of {tower} in .* changes nothing: its \d+ tensors lora_B are all zero, .*'{tower}\..*lora_B"
    ):
        load(adapted, precision="fp32")


@pytest.mark.parametrize("tower", ["vision", "language"])
def test_an_adapter_that_has_hardly_begun_to_learn_is_no_error(adapted, tower):
    rewrite(adapted, lambda name, old: old * 1e-12 if "lora_B" in name else old)
    load(adapted, precision="fp32")


@pytest.mark.parametrize("tower", ["vision", "language"])
def test_an_adapter_that_the_manifest_promises_but_the_file_lacks_is_refused_with_its_keys(adapted, tower):
    rewrite(adapted, lambda name, old: None if name.startswith(tower) else old)
    with pytest.raises(CheckpointError, match=rf"lacks \d+ of the tensors .*'{tower}\..*lora_A.*', '{tower}"):
        load(adapted, precision="fp32")


def test_adapter_keys_that_match_nothing_are_named(adapted):
    tensors = load_file(adapted / "weights.safetensors")
    save_file({name.replace("q_proj", "query"): tensor for name, tensor in tensors.items()}, adapted / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"holds \d+ tensors that this model lacks, among them '.*query\.lora_A.*is on other layers"):
        load(adapted, precision="fp32")


def test_scale_of_zero_in_a_manifest_is_refused(adapted):
    values = json.loads((adapted / "model.json").read_text())["config"]
    values["lora"]["language"]["alpha"] = 0.0
    edit(adapted, config=values)
    with pytest.raises(ConfigError, match=r"positive, finite alpha; got 0.0: the adapter would change nothing"):
        load(adapted, precision="fp32")


def test_an_adapter_of_one_tower_loads_beside_a_new_one_of_the_other(compose, config, tmp_path):
    first = compose(rank=2, trained=("connector", "language"))
    stir(first)
    save(first, config(rank=2), tmp_path / "step")
    model = compose(**ADAPTERS, trained=("vision", "connector", "language"))
    assert [line.split(":")[0] for line in load_trained(model, tmp_path / "step")] == ["connector", "language"]


def test_a_new_dora_adapter_on_loaded_weights_changes_no_logits(compose, config, chat_batch, tmp_path):
    """Its magnitudes are the lengths of the rows of the loaded weights, not of the source's."""
    model = compose(trained=("connector", "language"))
    stir(model)
    save(model, config(), tmp_path / "step")
    again = compose(rank=2, kind="dora", trained=("connector", "language"))
    load_trained(again, tmp_path / "step")
    batch = chat_batch(model, TALK)
    torch.testing.assert_close(logits(again, batch), logits(model, batch), atol=1e-5, rtol=1e-5)


def test_rslora_is_scaled_by_the_root_of_the_rank_after_loading(compose, config, tmp_path):
    model = compose(rank=4, kind="rslora", trained=("connector", "language"))
    stir(model)
    save(model, config(rank=4, kind="rslora"), tmp_path / "step")
    loaded = load(tmp_path / "step", precision="fp32")
    scales = {layer.scaling["default"] for _, layer in adapted_layers(loaded)}
    assert scales == {16.0 / 2.0}  # alpha 16, rank 4


def test_a_newer_format_is_refused(saved):
    edit(saved, format_version=99)
    with pytest.raises(CheckpointError, match="format_version 99; this vlm reads up to 1"):
        load(saved, precision="fp32")


def test_an_unknown_setting_is_refused_with_the_nearest(saved):
    values = json.loads((saved / "model.json").read_text())["config"]
    edit(saved, config=values | {"connecter": "linear"})
    with pytest.raises(UnknownNameError, match=r"'connecter'\. Did you mean 'connector'"):
        load(saved, precision="fp32")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": 1}', '{"format_version": "1"}'])
def test_a_manifest_that_is_no_manifest_is_one_line(saved, text):
    (saved / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model.json cannot be read") as error:
        load(saved, precision="fp32")
    assert "\n" not in str(error.value)


def run_folders(root: Path, *names: str, steps: tuple[str, ...] = ("step-000010",)) -> None:
    for name in names:
        for step in steps:
            folder = root / name / "checkpoints" / step
            folder.mkdir(parents=True)
            (folder / "model.json").touch()


def test_a_unique_prefix_finds_the_latest_checkpoint_of_a_run(tmp_path):
    run_folders(tmp_path, "demo+align+x7", steps=("step-000005", "step-000040", "step-1000000"))
    run_folders(tmp_path, "demo+finetune+x7")
    (tmp_path / "demo+align+x7" / "checkpoints" / "step-2000000.tmp").mkdir()
    latest = tmp_path / "demo+align+x7" / "checkpoints" / "step-1000000"
    for name in ("demo+a", tmp_path / "demo+a", tmp_path / "demo+align+x7", latest):
        assert find_checkpoint(name, run_root=tmp_path) == latest


def test_a_whole_name_wins_over_longer_names(tmp_path):
    run_folders(tmp_path, "demo+align+x7", "demo+align+x77")
    assert find_checkpoint("demo+align+x7", run_root=tmp_path).parts[-3] == "demo+align+x7"


def test_a_prefix_of_several_runs_is_refused_with_their_names(tmp_path):
    run_folders(tmp_path, "demo+align+x7", "demo+finetune+x7")
    with pytest.raises(ConfigError, match=r"2 runs begin with 'demo' in .*Runs: demo\+align\+x7, demo\+finetune\+x7"):
        find_checkpoint("demo", run_root=tmp_path)


def test_a_prefix_of_no_run_is_refused_with_the_runs_there_are(tmp_path):
    run_folders(tmp_path, "demo+align+x7")
    with pytest.raises(ConfigError, match=r"no run that begins with 'llava' in .*Runs: demo\+align\+x7"):
        find_checkpoint("llava", run_root=tmp_path)
    with pytest.raises(ConfigError, match="Runs: none"):
        find_checkpoint("llava", run_root=tmp_path / "nowhere")


def test_the_nearest_run_is_named_first_and_a_long_list_is_cut(tmp_path):
    run_folders(tmp_path, "llava-1.5-7b+align+x7", "demo+align+x7", *(f"other-{i:02}+align+x7" for i in range(60)))
    with pytest.raises(ConfigError, match=r"Did you mean 'demo\+align\+x7'\? Runs: .* and 12 more\.") as refused:
        find_checkpoint("demmo", run_root=tmp_path)
    assert "other-59" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"Did you mean 'llava-1.5-7b\+align\+x7'\?"):
        find_checkpoint("LLaVA-1.5-7", run_root=tmp_path)
    with pytest.raises(ConfigError, match=r"no run that begins with 'zzz' in .*\. Runs: demo"):
        find_checkpoint("zzz", run_root=tmp_path)


def test_an_empty_name_is_no_prefix_of_the_only_run(tmp_path):
    run_folders(tmp_path, "demo+align+x7")
    with pytest.raises(ConfigError, match="The name of a model is empty"):
        find_checkpoint("", run_root=tmp_path)


def test_the_folder_where_one_stands_is_no_prefix_of_every_run(tmp_path, monkeypatch):
    run_folders(tmp_path / "runs", "demo+align+x7", "demo+finetune+x7")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^\. is a folder, but neither a run"):
        find_checkpoint(".")


def test_a_folder_that_is_no_run_is_taken_for_a_prefix(tmp_path, monkeypatch):
    run_folders(tmp_path / "runs", "demo+align+x7", "demo+finetune+x7")
    (tmp_path / "runs" / "demo").mkdir()  # the report of the demo
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "runs/demo"):
        with pytest.raises(ConfigError, match=r"2 runs begin with 'demo' in runs. Name one of them. Runs: demo\+align\+x7, demo\+finetune\+x7"):
            find_checkpoint(name)


def test_a_folder_of_another_layout_points_to_the_import(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.json").touch()
    with pytest.raises(ConfigError, match=r"exported is a folder, but neither a run .* no model.json.*`vlm import`"):
        find_checkpoint("exported")
    with pytest.raises(ConfigError, match=r"exported is a folder"):
        find_checkpoint(tmp_path / "exported")


def test_a_source_is_of_a_tower(saved):
    with pytest.raises(ConfigError, match="'language' names no tower of a model that answers; give vision_source or language_source"):
        open_model(saved, device="cpu", language="tiny-phi")


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    (tmp_path / "demo+align+x7" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        find_checkpoint("demo", run_root=tmp_path)


def test_a_full_disk_leaves_no_half_written_folder_and_earlier_checkpoints_intact(compose, config, tmp_path, monkeypatch):
    model = compose(trained=("connector",))
    save(model, config(), tmp_path / "step-1")
    before = {path.name: path.read_bytes() for path in (tmp_path / "step-1").iterdir()}

    def half_of_it(state, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", half_of_it)
    with pytest.raises(CheckpointError, match=r"could not be written: .*No space left on device.*Free space"):
        save(model, config(), tmp_path / "step-2")
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "step-1").iterdir()} == before


def test_a_folder_without_write_permission_is_one_line(compose, config, tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))  # root, who runs the tests in CI, may write everywhere

    model = compose()
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(CheckpointError, match=r"could not be written: .*Permission denied.*choose another --run-root") as error:
        save(model, config(), tmp_path / "step")
    assert "\n" not in str(error.value)


def test_a_parent_that_is_a_file_is_one_line(compose, config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"could not be written.*choose another --run-root"):
        save(compose(), config(), tmp_path / "file" / "step")


def test_an_existing_checkpoint_is_replaced(compose, config, chat_batch, tmp_path):
    model = compose(trained=("connector",))
    save(model, config(), tmp_path / "step")
    stir(model)
    save(model, config(), tmp_path / "step")
    batch = chat_batch(model, TALK)
    assert torch.equal(logits(load(tmp_path / "step", precision="fp32"), batch), logits(model, batch))
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_a_connector_trained_before_is_stored_with_an_adapter_trained_now(saved, compose, config, chat_batch, tmp_path):
    """align, then a fine-tune whose connector is frozen: its checkpoint must stand alone."""
    aligned = load(saved, precision="fp32")
    model = compose(rank=2, trained=("language",), seed=99)
    load_trained(model, saved)
    stir(model)
    save(model, config(rank=2), tmp_path / "finetune")
    loaded, batch = load(tmp_path / "finetune", precision="fp32"), chat_batch(model, TALK)
    assert torch.equal(loaded.connector.readout.weight, aligned.connector.readout.weight)
    assert torch.equal(logits(loaded, batch), logits(model, batch))


MEASURE = """
import json, sys
from pathlib import Path
import torch, vlm.models.checkpoint as checkpoint
from vlm.conf.schema import VisionLanguageConfig
from vlm.models.build import build

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

folder = Path(sys.argv[1])
config = VisionLanguageConfig(vision="tiny-clip", language=f"hf:{folder / 'lm'}", connector="linear", template="caption")
model = build(config, precision="fp32", trained=("connector", "language"))
if sys.argv[2] == "save":
    checkpoint.save(model, config, folder / "step")
else:
    model.requires_grad_(False)
    for weight in model.parameters():
        weight += 0  # every page of ours is real
    Path("/proc/self/clear_refs").write_text("5")  # peak from here on
    before, anonymous = status("VmRSS"), status("RssAnon")
    import threading
    peak, done = [0], threading.Event()
    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], status("RssAnon"))
    thread = threading.Thread(target=watch); thread.start()
    checkpoint.load_trained(model, folder / "step")
    done.set(); thread.join()
    print(json.dumps({"weights": sum(p.numel() * 4 for p in model.parameters()), "resident": status("VmHWM") - before, "anonymous": peak[0] - anonymous}))
"""


@pytest.mark.slow
def test_a_language_model_sized_checkpoint_loads_without_a_second_copy(tmp_path):
    import transformers

    from vlm.backbones.language import LANGUAGE

    spec = LANGUAGE["tiny-llama"]
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = transformers.LlamaConfig(**{**spec.architecture, **sizes})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "lm")
    spec.tokenizer(spec, None).save_pretrained(tmp_path / "lm")
    for what in ("save", "load"):
        done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path, what], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["weights"] > 190e6
    assert seen["anonymous"] < 0.15 * seen["weights"]
    assert seen["resident"] < 0.3 * seen["weights"]  # pages of the file count as well, though they may be dropped at any time
