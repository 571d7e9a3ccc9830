import pytest
import torch

from vlm.backbones.loading import Load
from vlm.backbones.text.base import build_text
from vlm.backbones.text.siglip import SPECS
from vlm.backbones.text.tiny import SPECS as TINY

TOTAL = {  # parameters of the safetensors files at the hub
    "siglip-b16-224-text": 203_155_970,
    "siglip-b16-256-text": 203_202_050,
    "siglip-b16-384-text": 203_447_810,
    "siglip-so400m-224-text": 877_360_306,
    "siglip-so400m-384-text": 877_960_498,
}


@pytest.mark.parametrize("name", SPECS)
def test_parameter_count_is_what_the_architecture_comes_to(name: str):
    size = SPECS[name].architecture
    d, f = size["hidden_size"], size["intermediate_size"]
    attention, mlp, norm, head = 4 * d * d + 4 * d, 2 * d * f + f + d, 2 * d, d * d + d
    embeddings = 32_000 * d + SPECS[name].max_length * d
    assert SPECS[name].num_parameters == embeddings + size["num_hidden_layers"] * (attention + mlp + 2 * norm) + norm + head


@pytest.mark.parametrize("name", SPECS)
def test_parameters_of_both_towers_add_up_to_the_published_total(name: str):
    from vlm.backbones.vision import VISION

    logit_scale_and_bias = 2
    assert VISION[name.removesuffix("-text")].num_parameters + SPECS[name].num_parameters + logit_scale_and_bias == TOTAL[name]


@pytest.mark.parametrize("name", SPECS)
def test_length_is_that_of_open_clip(name: str):
    open_clip = pytest.importorskip("open_clip")
    known = {
        "siglip-b16-224-text": "ViT-B-16-SigLIP",
        "siglip-so400m-224-text": "ViT-SO400M-14-SigLIP",
        "siglip-so400m-384-text": "ViT-SO400M-14-SigLIP-384",
    }
    config = open_clip.get_model_config(known.get(name, f"ViT-B-16-SigLIP-{name.split('-')[2]}"))
    assert config["text_cfg"]["context_length"] == SPECS[name].max_length
    assert config["embed_dim"] == SPECS[name].width


def test_vector_is_the_head_of_the_last_position_and_padding_is_seen(folder):
    encoder = build_text(TINY["tiny-siglip-text"], Load(source=folder("tiny-siglip-text")[0]))
    ids = encoder.tokenize(["a blue circle"])
    model = encoder.tower.model
    torch.testing.assert_close(encoder(ids), model.head(model(ids).last_hidden_state[:, -1]), rtol=0, atol=1e-5)
    unpadded = ids[:, : ids[0].tolist().index(1) + 1]
    assert not torch.allclose(encoder(unpadded), encoder(ids), atol=1e-2)
