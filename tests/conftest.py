"""What every test starts from: no hub, the same number of threads everywhere, a fixed seed, and ways to start several processes or load folders with code."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Before torch is imported, which reads them once.
os.environ["OMP_WAIT_POLICY"] = "passive"  # spinning threads cost five times the time where other processes run
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")  # the order of sums depends on it
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "offline"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell has what it starts in the background ignore Ctrl-C, and all that this starts
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Keep tests off the model hub, except under `-m network`."""
    if "network" not in config.getoption("markexpr").replace("not network", ""):
        os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of the GPU where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same random weights in a test whatever ran before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`torchrun("script.py", "--flag", processes=2)` on this machine, in an empty folder; fails the test with the output if a process fails."""

    def run(*arguments: str | Path, processes: int = 2, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(processes)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*launcher, *map(str, arguments)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where transformers copies the code of an exported folder to."""
    from transformers import dynamic_module_utils

    folder = tmp_path / "modules"
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)  # from the folder of another test
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which transformers adds this one
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
    return folder
