import pytest
import torch
from tiny_data import losses

import vlm
from vlm.conf.schema import LearningRates
from vlm.models.build import build
from vlm.training.recompute import recompute
from vlm.types import Documents


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_gradient_checkpointing_gives_equal_losses(tiny, stage):
    plain = losses(vlm.train(tiny(stage)))
    assert losses(vlm.train(tiny(stage, gradient_checkpointing=("language",), overwrite=True))) == plain


def test_each_tower_is_recomputed_on_its_own(tiny):
    rates = LearningRates(vision=1e-3, connector=1e-3, language=1e-3)
    plain = losses(vlm.train(tiny("finetune", lr=rates)))
    for parts in (("vision",), ("vision", "language")):
        assert losses(vlm.train(tiny("finetune", lr=rates, gradient_checkpointing=parts, overwrite=True))) == plain


def test_blocks_of_a_frozen_model_in_evaluation_mode_are_computed_twice(tiny):
    language = build(tiny().model, precision="fp32", trained=("connector",)).language
    assert not language.training
    calls = []
    language.blocks()[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    recompute(language.blocks())
    embeds = torch.randn(1, 5, language.width, requires_grad=True)
    language(embeds, Documents.one_per_row(1, 5)).sum().backward()
    assert len(calls) == 2
    with torch.inference_mode():
        language(embeds, Documents.one_per_row(1, 5))
    assert len(calls) == 3


def test_names_of_weights_stay(tiny):
    language = build(tiny().model, precision="fp32").language
    before = list(language.state_dict())
    recompute(language.blocks())
    assert list(language.state_dict()) == before
