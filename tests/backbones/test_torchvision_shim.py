"""A torchvision whose compiled part does not load, simulated in a process of its own: as PyPI's torchvision beside a CPU build of torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # imports of seconds, in processes of their own
for package in ("torchvision", "open_clip", "timm"):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[2]
BROKEN = """
import torch
def refuse(path): raise OSError("libtorch_cuda.so: cannot open shared object file")
torch.ops.load_library = refuse
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)


def test_torchvision_works_without_its_compiled_part_after_it_failed_by_itself():
    done = python(f"""{BROKEN}
try: import torchvision
except RuntimeError as error: assert "operator torchvision::nms does not exist" in str(error)
from vlm.backbones.torchvision_shim import prepare_torchvision
prepare_torchvision()
prepare_torchvision()
from torchvision.transforms import CenterCrop, Resize
from PIL import Image
print(CenterCrop(4)(Resize(6)(Image.new("RGB", (9, 12)))).size)
import open_clip, timm
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(4, 4)"
    assert done.stderr.count("going on without its detection operators") == 1


def test_nothing_is_done_where_the_compiled_part_loads():
    done = python("""
from vlm.backbones import torchvision_shim
torchvision_shim.prepare_torchvision()
import torch
assert not torchvision_shim._libraries
print(torch.ops.torchvision.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5))
""")
    if "going on without" in done.stderr:
        pytest.skip("torchvision's compiled part does not load here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "tensor([0])"
