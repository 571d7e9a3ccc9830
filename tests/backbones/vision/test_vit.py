from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vlm.backbones.loading import Load
from vlm.backbones.vision.vit import SPECS

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
TINY = replace(SPECS["in1k-vit-l16-224"], architecture=SIZE, width=16, image_size=32, num_patches=16)


@pytest.mark.parametrize("feature_layer", [None, -1, -3, 0, 1, 3])
def test_patch_features_equal_the_hidden_states_of_transformers(feature_layer: int | None, tiles, processed):
    tower = TINY.build(TINY, Load(source=None, feature_layer=feature_layer))
    hidden = tower.model(processed(tiles(32), TINY), output_hidden_states=True).hidden_states
    expected = hidden[-2 if feature_layer is None else feature_layer][:, 1:]
    torch.testing.assert_close(tower(tiles(32)), expected, rtol=0, atol=1e-5)


def test_tower_loads_from_a_published_classifier_and_pools_what_it_classified(tmp_path: Path, tiles, processed):
    import transformers

    classifier = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZE, num_labels=5)).eval()
    classifier.save_pretrained(tmp_path)
    tower = TINY.build(TINY, Load(source=tmp_path))
    expected = classifier(processed(tiles(32), TINY)).logits
    torch.testing.assert_close(classifier.classifier(tower.pooled(tiles(32))), expected, rtol=0, atol=1e-5)


def test_parameter_count_is_what_the_architecture_comes_to():
    (spec,) = SPECS.values()
    d, f, patch = spec.architecture["hidden_size"], spec.architecture["intermediate_size"], spec.architecture["patch_size"]
    attention, mlp, norm = 4 * d * d + 4 * d, 2 * d * f + f + d, 2 * d
    embeddings = d + 3 * patch * patch * d + d + (spec.num_patches + 1) * d
    assert spec.num_parameters == embeddings + spec.architecture["num_hidden_layers"] * (attention + mlp + 2 * norm) + norm
