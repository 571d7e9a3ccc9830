"""Which files of weights are mapped while they are read."""

import subprocess
import sys
import threading
import time

import pytest
import torch
import transformers
from transformers import modeling_utils

from vlm.backbones.loading import _unmapped, from_pretrained

TINY = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}


@pytest.mark.parametrize(("dtype", "way"), [(torch.float32, "mmap"), (torch.bfloat16, "pread"), (None, "mmap")])
def test_a_file_whose_tensors_change_their_type_is_not_mapped_beside_the_copies(tmp_path, monkeypatch, dtype, way):
    """Mapped pages stay until the file is closed: half of CLIP ViT-B/32's peak of loading it in bf16."""
    torch.manual_seed(0)
    saved = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TINY))
    saved.save_pretrained(tmp_path)
    opened, ways = modeling_utils.safe_open, []

    def recorded(file, **options):
        ways.append(options["backend"])
        return opened(file, **options)

    monkeypatch.setattr(modeling_utils, "safe_open", recorded)
    loaded, _ = from_pretrained(transformers.CLIPVisionModel, tmp_path, **({} if dtype is None else {"dtype": dtype}))
    assert ways == [way]
    assert modeling_utils.safe_open is recorded
    for name, tensor in saved.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor.to(dtype or torch.float32), rtol=0, atol=0)


def test_the_opener_is_transformers_own_again_after_loads_in_several_threads_and_inside_each_other():
    opened, inside = modeling_utils.safe_open, threading.Event()

    def begins_first():
        with _unmapped(torch.bfloat16), _unmapped(torch.float16):
            inside.set()
            time.sleep(0.2)

    first = threading.Thread(target=begins_first)
    first.start()
    assert inside.wait(10)
    with _unmapped(torch.bfloat16):
        first.join(10)
    assert modeling_utils.safe_open is opened


def test_a_config_is_read_without_what_loads_weights(tmp_path):
    transformers.CLIPVisionConfig(**TINY).save_pretrained(tmp_path)
    lines = ["import sys", "from transformers import CLIPVisionConfig", "from vlm.backbones.loading import read_config"]
    lines += ["read_config(CLIPVisionConfig, sys.argv[1])", "print('transformers.modeling_utils' in sys.modules)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines), str(tmp_path)], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
