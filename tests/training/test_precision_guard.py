import pytest
import torch
from torch import nn

import vlm
from vlm.errors import ConfigError
from vlm.training.precision_guard import refuse_slow_products


def test_products_in_bf16_pass():
    layer = nn.Linear(64, 64, dtype=torch.bfloat16)
    with refuse_slow_products():
        layer(torch.ones(8, 64, dtype=torch.bfloat16)).sum().backward()


def test_product_in_fp32_is_refused_and_its_module_is_named():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.good, self.stray = nn.Linear(64, 64, dtype=torch.bfloat16), nn.Linear(64, 64)

        def forward(self, inputs):
            return self.stray(self.good(inputs).float())

    with pytest.raises(ConfigError, match=r"50% of the matrix products of this bf16 run are computed in fp32, by Part.stray"), refuse_slow_products():
        Part()(torch.ones(8, 64, dtype=torch.bfloat16))


def test_small_products_in_fp32_pass():
    layer, angles = nn.Linear(512, 512, dtype=torch.bfloat16), nn.Linear(2, 2)
    with refuse_slow_products():
        layer(torch.ones(8, 512, dtype=torch.bfloat16))
        angles(torch.ones(8, 2))


@pytest.mark.parametrize("precision", ["bf16", "bf16-mixed"])
@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_runs_in_bf16_have_none(tiny, stage, precision):
    vlm.train(tiny(stage, precision=precision, max_steps=1))


def test_a_run_that_computes_in_fp32_is_refused(tiny, monkeypatch):
    import vlm.models.build as build

    monkeypatch.setitem(build.FROZEN_DTYPE, "bf16", torch.float32)
    monkeypatch.setitem(build.TRAINED_DTYPE, "bf16", torch.bfloat16)
    with pytest.raises(ConfigError, match="of this bf16 run are computed in fp32"):
        vlm.train(tiny("align", precision="bf16", max_steps=1))
