"""scripts/slurm.sh with stand-ins for Slurm and torchrun: the command line that it makes parses, and a job that is told to end is queued again."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from vlm.conf.cli import parse_train

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "slurm.sh"

# Each notes how it was called, a word a line; srun runs the rest of its line, and scancel passes the signal on to what srun runs.
SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\necho $$ > srun.pid\nexec "$@"\n'
SCONTROL = '#!/bin/bash\nif [[ $1 == show ]]; then echo node7; echo node8; else echo "$@" >> scontrol.txt; fi\n'
SCANCEL = '#!/bin/bash\necho "$@" >> scancel.txt\nkill -TERM "$(cat srun.pid)"\n'
TORCHRUN = '#!/bin/bash\nprintf "%s\\n" "$@" > torchrun.tmp; mv torchrun.tmp torchrun.txt\n'
TRAINS = "trap 'sleep 0.2; exit 1' TERM\nfor _ in {1..400}; do sleep 0.05; done"  # until it is told to end; torchrun's status is then 1


@pytest.fixture
def job(tmp_path: Path):
    """Starts the script as Slurm would, in a folder of its own; `then` is what torchrun does after it has noted its arguments."""

    started: list[subprocess.Popen] = []

    def start(*arguments: str, then: str) -> subprocess.Popen:
        programs = tmp_path / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("scancel", SCANCEL), ("torchrun", TORCHRUN + then + "\n")):
            (programs / name).write_text(text, encoding="utf-8")
            (programs / name).chmod(0o755)
        slurm = {"SLURM_JOB_ID": "4217", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}
        with (tmp_path / "stderr.txt").open("w", encoding="utf-8") as stderr:
            started.append(subprocess.Popen(["bash", SCRIPT, *arguments], cwd=tmp_path, env=os.environ | slurm, stderr=stderr))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_command_line_parses_and_joins_the_nodes(job, tmp_path):
    process = job("llava-1.5-7b/finetune", "--init-from", "runs/llava-1.5-7b+align", "--checkpoint-every", "50", then="exit 0")
    assert process.wait(timeout=20) == 0
    said = (tmp_path / "torchrun.txt").read_text(encoding="utf-8").splitlines()
    at = said.index("scripts/pretrain.py")
    assert said[:at] == [
        *("--nnodes", "2", "--nproc-per-node", "8"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "node7:29717", "--rdzv-id", "4217"),
    ]
    config = parse_train(said[at + 1 :], prog="vlm pretrain")
    assert config.resume == "auto"
    assert config.init_from == Path("runs/llava-1.5-7b+align")
    assert (config.checkpoint_every, config.keep_last) == (50, 2)  # what is given overrides the script's own
    assert not (tmp_path / "scontrol.txt").exists()


def test_job_that_is_told_to_end_ends_the_training_and_is_queued_again(job, tmp_path):
    process = job("tiny/align", then=TRAINS)
    wait_for(tmp_path / "torchrun.txt")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 1
    assert (tmp_path / "scancel.txt").read_text(encoding="utf-8") == "--signal=TERM 4217\n"
    assert (tmp_path / "scontrol.txt").read_text(encoding="utf-8") == "requeue 4217\n"


def test_training_that_fails_by_itself_is_not_queued_again(job, tmp_path):
    process = job("tiny/align", then="exit 2")
    assert process.wait(timeout=20) == 2
    assert not (tmp_path / "scontrol.txt").exists()


def test_without_a_preset_the_usage_is_said(job, tmp_path):
    process = job(then="exit 0")
    assert process.wait(timeout=20) != 0
    assert "usage: sbatch --nodes N scripts/slurm.sh PRESET [overrides]" in (tmp_path / "stderr.txt").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} does not come"
        time.sleep(0.02)
