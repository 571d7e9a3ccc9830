import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_data import images_of_ranks, losses, metrics, rows, write

import vlm
from vlm.conf.schema import BatchPlan, LearningRates, LoRAConfig, TrackingConfig
from vlm.conf.serialize import write_config
from vlm.data.stream.loader import MicroBatches
from vlm.data.stream.order import shuffled

pytestmark = pytest.mark.dist

ROOT = Path(__file__).parents[2]
TRAIN_EACH = Path(__file__).with_name("train_each.py")


def test_two_processes_train_as_one(tiny, torchrun, tmp_path):
    """Frozen towers alone; LoRA beside a trained vision backbone, and beside DoRA on it; packed rows and trees; one sample a rank, so that one has no picture."""
    everything = LearningRates(vision=1e-3, connector=1e-3, language=1e-2)
    configs = {
        "frozen": tiny("align", per_device_batch_size=2),
        "everything": tiny("finetune", per_device_batch_size=1, global_batch_size=4, lr=everything, max_steps=6),
        "packed": tiny("finetune", per_device_batch_size=1, global_batch_size=4, pack_length=400, share_images=True, max_steps=5),
        "lonely": tiny("finetune", per_device_batch_size=1, global_batch_size=2, lr=everything, max_steps=8, clip_norm=None),
    }
    assert {min(step) for step in images_of_ranks(configs["lonely"], 2)} == {0, 1}
    lora = replace(configs["lonely"].model.lora, vision=LoRAConfig(rank=2, kind="dora"))
    configs["adapters"] = replace(configs["lonely"], model=replace(configs["lonely"].model, lora=lora))
    files = []
    for name, config in configs.items():
        config = replace(config, model=replace(config.model, name=name))
        vlm.train(config)
        files.append(tmp_path / f"{name}.json")
        write_config(replace(config, run_root=tmp_path / "two"), files[-1])
    done = torchrun(TRAIN_EACH, *files, timeout=150)
    assert done.stdout.splitlines() == [f"main: {name}+{config.stage.name}+x7" for name, config in configs.items()]
    for name, config in configs.items():
        one, two = (root / f"{name}+{config.stage.name}+x7" for root in (tmp_path / "runs", tmp_path / "two"))
        assert losses(two) == pytest.approx(losses(one), abs=1e-5), name
        (first, second) = (load_file(next(run.glob("checkpoints/*/weights.safetensors"))) for run in (one, two))
        assert first.keys() == second.keys()
        # A key's bias has no effect on attention: its gradient is rounding alone, and Adam makes steps of a whole rate of it.
        distances = {key: float((first[key] - second[key]).abs().max()) for key in first if not key.endswith("k_proj.bias")}
        worst = max(distances, key=distances.__getitem__)
        assert distances[worst] < 5e-4, (name, worst)


@pytest.mark.slow
def test_script_under_torchrun_makes_one_run_folder_with_one_line_a_step(tiny, torchrun, tmp_path, data):
    done = torchrun(
        ROOT / "scripts" / "pretrain.py",
        "tiny/align",
        *("--stage.dataset", data, "--stage.validation", data, "--tracking.num-samples", "2", "--stage.num-workers", "1", "--device", "cpu"),
        timeout=150,
    )
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name == "tiny+align+x7"
    assert [line["step"] for line in metrics(run_dir) if "loss" in line] == [1, 2, 3, 4]
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-000004"]
    assert done.stdout.splitlines()[0] == str(Path("runs") / run_dir.name)
    assert all(0 < line["communication_share"] <= 1 for line in metrics(run_dir) if "loss" in line)
    assert done.stderr.count("fp32 on cpu x 2") == 1
    assert "Warning" not in done.stderr
    reference = vlm.train(tiny("align", run_root=tmp_path / "alone", tracking=TrackingConfig(), num_workers=0))
    assert losses(run_dir) == pytest.approx(losses(reference), abs=1e-5)


def fail(tmp_path: Path, *arguments: str | Path) -> list[str]:
    """Lines that the command itself prints when it fails under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = (ROOT / "scripts" / "pretrain.py", "tiny/align", "--device", "cpu", *arguments)
    done = subprocess.run([*command, *map(str, arguments)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode != 0
    assert "exitcode  : 2" in done.stderr
    return [line for line in done.stderr.splitlines() if "vlm pretrain:" in line]


def test_error_of_all_ranks_is_said_once(tmp_path):
    (line,) = fail(tmp_path, "--stage.dataset", "easy-vqq")
    assert line.startswith("vlm pretrain: No dataset named 'easy-vqq'. Did you mean 'easy-vqa'")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--stage.global-batch-size", "7"), r"7 is not a multiple of --stage.per-device-batch-size 4 x 2 device\(s\) = 8. Nearest .* 8\.$"),
        (("--stage.global-batch-size", "12"), r"Nearest that fit: --stage.global-batch-size 8 or 16, or --stage.per-device-batch-size 3\.$"),
        (("--parallel.strategy", "hsdp", "--parallel.shard-size", "3"), r"shard-size 3 does not divide the 2 ranks .*: --parallel.shard-size 2\.$"),
    ],
    ids=["odd", "batch", "groups"],
)
def test_impossible_arithmetic_is_refused_before_anything_is_read(tmp_path, given, said):
    (line,) = fail(tmp_path, *given, "--stage.dataset", "easy-vqa", "--data-root", "nowhere")
    assert re.search(said, line), line


@pytest.mark.slow
def test_error_of_the_second_rank_alone_is_said_and_ends_all(tmp_path, tiny, monkeypatch):
    (tmp_path / "late").mkdir()  # a process that takes long to end is still the one that torchrun names
    (tmp_path / "late" / "sitecustomize.py").write_text("import atexit, time\natexit.register(time.sleep, 5)\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path / "late"), os.environ.get("PYTHONPATH")))))
    config = tiny(global_batch_size=2, per_device_batch_size=1)
    first = next(iter(MicroBatches(shuffled(8, config.seed), BatchPlan(world=2, per_device=1, accumulation=1), rank=1, num_steps=1)))
    samples = rows()
    broken = first.rows[0][0][0]  # what rank 1 reads first
    samples[broken] |= {"image": "broken.png", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]}
    data = write(tmp_path / "data", json.loads(json.dumps(samples)))
    (tmp_path / "data" / "broken.png").write_bytes(b"no picture")
    lines = fail(tmp_path, "--stage.dataset", data, "--stage.global-batch-size", "2", "--stage.per-device-batch-size", "1")
    (line,) = lines
    assert line.startswith("[rank 1] vlm pretrain: The image file")
    assert "broken.png cannot be read" in line
