"""Contrastive losses of two ranks against those of one process."""

import runpy
from pathlib import Path

import pytest
import torch

from vlm.types import World

pytestmark = pytest.mark.dist

CONTRAST_EACH = Path(__file__).with_name("contrast_each.py")


def test_two_ranks_have_the_loss_and_the_gradients_of_one(torchrun, tmp_path):
    torchrun(CONTRAST_EACH, tmp_path)
    alone = runpy.run_path(str(CONTRAST_EACH))["measure"](World.single())
    assert len(alone) == 12
    for rank in range(2):
        ranks = torch.load(tmp_path / f"rank{rank}.pt")
        assert ranks.keys() == alone.keys()
        for case, wanted in alone.items():
            assert ranks[case].keys() == wanted.keys()
            assert any(name.startswith("scale.") for name in wanted)
            for name, value in wanted.items():
                assert float(value.abs().max()) > 1e-4, (case, name)
                torch.testing.assert_close(ranks[case][name], value, atol=1e-6, rtol=1e-5, msg=lambda said, at=(case, name): f"{at}: {said}")
