"""The switch to bidirectional attention over families, attention functions and sides of the padding; tiny random models of transformers."""

from typing import Any

import pytest
import torch

from vlm.backbones.text.bidirectional import check_attention, make_bidirectional
from vlm.backbones.text.pooled import PooledTower
from vlm.errors import CheckpointError

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "mistral with window": {"sliding_window": 4},
    "phi": {"rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default", "partial_rotary_factor": 0.5}},
    "phi3": {"pad_token_id": 2, "eos_token_id": 2},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
}


def tiny(family: str, attention: str = "sdpa") -> Any:
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    config = transformers.AutoConfig.for_model(family.split()[0], **sizes, initializer_range=0.3, max_position_embeddings=64, **FAMILIES[family])
    return transformers.AutoModel.from_config(config, attn_implementation=attention).eval()


def batch(text: list[int], *, side: str, pads: int = 20, fill: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """A text beside a longer one, and which of its places are tokens."""
    padding = [fill] * pads
    other = [(7 * i) % 61 + 1 for i in range(pads + len(text))]
    row, seen = (padding + text, [0] * pads + [1] * len(text)) if side == "left" else (text + padding, [1] * len(text) + [0] * pads)
    return torch.tensor([row, other]), torch.tensor([seen, [1] * len(other)])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_first_token_sees_the_last_and_no_padding_and_no_neighbor(family: str, attention: str, side: str):
    model = tiny(family, attention)
    make_bidirectional(model, padding_side=side)
    first = PooledTower(model, pooling="bos_token")
    text, changed = [11, 12, 13, 14], [11, 12, 13, 41]
    alone = first(torch.tensor([text]))
    beside = first(*batch(text, side=side))[:1]
    assert (alone - first(torch.tensor([changed]))).abs().max() > 1e-2
    assert (beside - first(*batch(changed, side=side))[:1]).abs().max() > 1e-2
    assert torch.equal(beside, first(*batch(text, side=side, fill=33))[:1])
    torch.testing.assert_close(beside, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last_token", "bos_token"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_pooled_vector_is_that_of_the_text_alone(family: str, pooling: str, side: str):
    model = tiny(family)
    make_bidirectional(model)
    tower = PooledTower(model, pooling=pooling)
    text = [11, 12, 13, 14, 15]
    torch.testing.assert_close(tower(*batch(text, side=side))[0], tower(torch.tensor([text]))[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_model_that_was_not_switched_is_refused(family: str):
    with pytest.raises(CheckpointError, match="do not see later tokens without padding"):
        check_attention(tiny(family), bidirectional=True)
    check_attention(tiny(family), bidirectional=False)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_flags_of_the_modules_alone_are_refused(attention: str):
    model = tiny("llama", attention)
    for module in model.modules():
        module.is_causal = False
    with pytest.raises(CheckpointError, match="do not see later tokens"):
        check_attention(model, bidirectional=True)


def test_switch_without_effect_raises():
    model = tiny("llama")
    model.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | {"is_causal": True}), with_kwargs=True)
    with pytest.raises(CheckpointError, match="has no effect with this version of transformers"):
        make_bidirectional(model)


def test_padding_that_is_seen_raises():
    model = tiny("llama")
    model.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | {"attention_mask": None}), with_kwargs=True)
    with pytest.raises(CheckpointError, match="Padding on the left changes what LlamaModel says"):
        make_bidirectional(model)


def test_absolute_positions_need_padding_on_the_right():
    import transformers

    config = transformers.GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    with pytest.raises(CheckpointError, match="A model with absolute positions needs padding on the right"):
        make_bidirectional(transformers.GPT2Model(config))
    make_bidirectional(transformers.GPT2Model(config), padding_side="right")


def test_model_that_was_saved_is_bidirectional_when_loaded_again(tmp_path):
    import transformers

    model = tiny("llama")
    make_bidirectional(model)
    model.save_pretrained(tmp_path)
    check_attention(transformers.AutoModel.from_pretrained(tmp_path), bidirectional=True)
