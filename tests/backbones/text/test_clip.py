from dataclasses import replace

import pytest
import torch

from vlm.backbones.loading import Load
from vlm.backbones.text.base import build_text
from vlm.backbones.text.clip import SPECS
from vlm.backbones.text.tiny import SPECS as TINY
from vlm.errors import CheckpointError

TOTAL = {
    "clip-b16-224-text": 149_620_737,
    "clip-b32-224-text": 151_277_313,
    "clip-b32-224-laion2b-text": 151_277_313,
    "clip-l14-224-text": 427_616_513,
    "clip-l14-336-text": 427_944_193,
}


@pytest.mark.parametrize("name", SPECS)
def test_parameter_count_is_what_the_architecture_comes_to(name: str):
    size = SPECS[name].architecture
    d, f = size["hidden_size"], size["intermediate_size"]
    attention, mlp, norm = 4 * d * d + 4 * d, 2 * d * f + f + d, 2 * d
    embeddings = 49_408 * d + 77 * d
    assert SPECS[name].num_parameters == embeddings + 12 * (attention + mlp + 2 * norm) + norm + d * size["projection_dim"]


@pytest.mark.parametrize("name", SPECS)
def test_parameters_of_both_towers_add_up_to_the_published_total(name: str):
    from vlm.backbones.vision import VISION

    vision = VISION[name.removesuffix("-text")]
    projection, logit_scale = vision.width * SPECS[name].width, 1
    assert vision.num_parameters + projection + SPECS[name].num_parameters + logit_scale == TOTAL[name]


def test_vector_is_the_projected_state_of_the_first_end_token(folder):
    encoder = build_text(TINY["tiny-clip-text"], Load(source=folder("tiny-clip-text")[0]))
    ids = encoder.tokenize(["a blue circle"])
    model = encoder.tower.model
    end = ids[0].tolist().index(1)
    state = model.text_model(ids).last_hidden_state[:, end]
    torch.testing.assert_close(encoder(ids), model.text_projection(state), rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder(ids[:, : end + 1]), encoder(ids), rtol=0, atol=1e-5)  # causal: padding is not seen


@pytest.mark.parametrize(("in_config", "pooled"), [(2, 49_407), (49_407, 49_407)])
def test_end_token_2_of_old_configs_means_the_highest_id(in_config: int, pooled: int):
    spec = replace(SPECS["clip-b16-224-text"], architecture=SPECS["clip-b16-224-text"].architecture | {"eos_token_id": in_config})
    with torch.device("meta"):
        assert spec.build(spec, Load(source=None)).end_token_id == pooled


def test_tokenizer_with_another_end_token_is_refused(folder):
    path, _ = folder("tiny-clip-text")
    tokenizer = TINY["tiny-clip-text"].tokenizer(TINY["tiny-clip-text"], None)
    tokenizer.eos_token = "<|startoftext|>"
    tokenizer.save_pretrained(path)
    with pytest.raises(CheckpointError, match="ends texts with id 0, but the text tower pools at id 1"):
        build_text(TINY["tiny-clip-text"], Load(source=path))
