import json
import logging
import math
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import build_image, joint_scale
from vlm.backbones.loading import Load
from vlm.backbones.vision.base import Normalize
from vlm.data.image import to_pixels
from vlm.errors import CheckpointError, UnknownNameError
from vlm.types import ImagePolicy

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
MODELS = {  # as in open_clip's model_configs
    "tiny-vit": {"embed_dim": 12, "vision_cfg": VIT, "text_cfg": TEXT},
    "tiny-vit-quickgelu": {"embed_dim": 12, "vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "tiny-timm": {
        "embed_dim": 12,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
        "text_cfg": TEXT,
    },
    "tiny-resnet": {"embed_dim": 12, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}, "text_cfg": TEXT},
    "tiny-coca": {
        "embed_dim": 12,
        "custom_text": True,
        "multimodal_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
        "vision_cfg": VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
    },
}


@pytest.fixture(autouse=True, scope="module")
def _models(tmp_path_factory: pytest.TempPathFactory):
    """open_clip's registry with the tiny models, for this file."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in MODELS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    paths, configs = list(open_clip.factory._MODEL_CONFIG_PATHS), dict(open_clip.factory._MODEL_CONFIGS)
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS[:] = paths
    open_clip.factory._MODEL_CONFIGS.clear()
    open_clip.factory._MODEL_CONFIGS.update(configs)


@pytest.fixture
def saved(tmp_path: Path):
    """`saved(name)`: a file of random weights, and open_clip's model and transform that were loaded from it."""

    def save(name: str):
        logging.getLogger().addHandler(logging.NullHandler())  # or open_clip sets up logging
        model = open_clip.create_model(name)
        with torch.no_grad():
            model.logit_scale.fill_(1.25)
        file = tmp_path / "open_clip_model.safetensors"
        save_file(model.state_dict(), file)
        model, _, transform = open_clip.create_model_and_transforms(name, pretrained=str(file))
        return file, model.eval(), transform

    return save


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_those_of_encode_image(name: str, saved):
    file, model, _ = saved(name)
    spec = IMAGE[f"open-clip:{name}:{file}-image"]
    encoder = build_image(spec, Load(source=spec.source))
    pixels = torch.randint(0, 256, (2, 3, spec.image_size, spec.image_size), dtype=torch.uint8)
    expected = model.encode_image(encoder.tower.normalize(pixels), normalize=False)
    torch.testing.assert_close(encoder(pixels), expected, rtol=0, atol=1e-5)
    assert encoder.width == spec.width == 12
    assert sum(weight.numel() for weight in encoder.parameters()) == spec.num_parameters
    assert encoder.blocks()


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-timm"])
def test_scale_and_bias_are_the_models(name: str, saved):
    file, _, _ = saved(name)
    spec = IMAGE[f"open-clip:{name}:{file}"]
    assert joint_scale(spec, Load(source=spec.source)) == (pytest.approx(math.exp(1.25)), -10 if name == "tiny-timm" else 0)
    assert joint_scale(spec, Load(source=None)) == (pytest.approx(1 / 0.07), -10 if name == "tiny-timm" else 0)


def test_pixels_and_normalized_values_are_bit_equal_to_the_evaluation_transform(saved, picture):
    file, _, transform = saved("tiny-vit")
    spec = IMAGE[f"open-clip:tiny-vit:{file}"]
    encoder = build_image(spec, Load(source=spec.source))
    assert torch.equal(encoder.tower.normalize(to_pixels([picture], encoder.image_policy))[0], transform(picture))


def test_gray_pictures_are_bit_equal_to_the_evaluation_transform(saved, picture):
    file, _, transform = saved("tiny-vit")
    spec = IMAGE[f"open-clip:tiny-vit:{file}"]
    encoder = build_image(spec, Load(source=spec.source))
    gray = picture.convert("L")
    assert torch.equal(encoder.tower.normalize(to_pixels([gray], encoder.image_policy))[0], transform(gray))


PUBLISHED = [
    "ViT-B-32:openai",
    "ViT-B-32:laion2b_s34b_b79k",
    "ViT-B-16-SigLIP:webli",
    "ViT-B-16-SigLIP2:webli",
    "ViT-H-14-378-quickgelu:dfn5b",
    "PE-Core-B-16:meta",
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_policy_and_statistics_of_published_weights_give_the_evaluation_transform(name: str, picture):
    spec = IMAGE[f"open-clip:{name}-image"]
    published = open_clip.get_pretrained_cfg(*name.split(":"))
    transform = open_clip.image_transform(
        spec.image_size, is_train=False, **{key: published[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    )
    assert torch.equal(Normalize(spec)(to_pixels([picture], spec.image_policy))[0], transform(picture))


def test_published_entries_are_those_of_the_hub_in_its_other_format():
    for ours, name in (("clip-b32-224-laion2b-image", "ViT-B-32:laion2b_s34b_b79k"), ("clip-l14-336-image", "ViT-L-14-336:openai")):
        theirs = IMAGE[f"open-clip:{name}"]
        assert (IMAGE[ours].num_parameters, IMAGE[ours].width, IMAGE[ours].mean) == (theirs.num_parameters, theirs.width, theirs.mean)
    assert IMAGE["siglip-b16-224-image"].num_parameters == IMAGE["open-clip:ViT-B-16-SigLIP:webli"].num_parameters


def test_half_a_pixel_is_cut_as_torchvision_does_it_and_not_as_transformers_does():
    picture = Image.effect_noise((35, 32), 90).convert("RGB")  # margins of 1.5 pixels
    down, even = (to_pixels([picture], ImagePolicy(size=32, mode="crop", half_pixel=half_pixel)) for half_pixel in ("down", "even"))
    assert torch.equal(down[..., 1:], even[..., :-1])
    assert not torch.equal(down, even)


def test_weights_whose_tag_says_quick_gelu_get_it(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # open_clip's, for its own mismatched model
        file, quick, _ = saved("tiny-vit-quickgelu")
    assert IMAGE["open-clip:ViT-B-32:openai"].architecture == {"name": "ViT-B-32", "quick_gelu": True}
    assert not IMAGE["open-clip:ViT-B-32:laion2b_s34b_b79k"].architecture["quick_gelu"]
    spec = IMAGE[f"open-clip:tiny-vit-quickgelu:{file}"]
    assert type(build_image(spec, Load(source=file)).blocks()[0].mlp.gelu) is type(quick.visual.transformer.resblocks[0].mlp.gelu)


def test_weights_of_a_tag_load_from_a_folder(saved):
    file, model, _ = saved("tiny-vit")
    spec = IMAGE["open-clip:tiny-vit"]
    encoder = build_image(spec, Load(source=file.parent))
    assert torch.equal(encoder.tower.visual.proj, model.visual.proj)


def test_name_without_weights_is_random_and_follows_the_seed():
    spec = IMAGE["open-clip:tiny-vit"]
    assert spec.source is None
    torch.manual_seed(3)
    ours = build_image(spec, Load(source=spec.source))
    torch.manual_seed(3)
    theirs = open_clip.create_model("tiny-vit")
    assert torch.equal(ours.tower.visual.proj, theirs.visual.proj)


@pytest.mark.parametrize("name", ["ViT-B-32:laion2b_s34b_b79k", "xlm-roberta-base-ViT-B-32", "coca_ViT-B-32", "ViT-B-16-SigLIP2:webli"])
def test_full_size_is_known_and_inspected_without_a_download(name: str):
    from vlm.models.catalog import inspect

    spec = IMAGE[f"open-clip:{name}-image"]
    shown = inspect(f"open-clip:{name}-image")
    assert shown.kind == "image"
    assert shown.tree[0] == ("image", "PooledImage", spec.num_parameters)


def test_missing_and_unknown_tensors_are_named(saved):
    file, _, _ = saved("tiny-vit")
    weights = load_file(file)
    weights["visual.proj_of_another"] = weights.pop("visual.proj")
    save_file(weights, file)
    with pytest.raises(CheckpointError, match=r'"visual\.proj".*"visual\.proj_of_another"') as error:
        build_image(IMAGE["open-clip:tiny-vit"], Load(source=file))
    assert "\n" not in str(error.value)


def test_hub_that_cannot_be_reached_is_one_line_with_a_remedy(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", refuse)
    spec = IMAGE["open-clip:ViT-B-32:laion2b_s34b_b79k"]
    with pytest.raises(CheckpointError, match=r"'laion2b_s34b_b79k' of open-clip:ViT-B-32 .*Name a local folder") as error:
        build_image(spec, Load(source=spec.source))
    assert "\n" not in str(error.value)


def test_misspelled_model_and_weights_get_the_nearest():
    with pytest.raises(UnknownNameError, match="'ViT-B-32'"):
        IMAGE["open-clip:ViT-B-23:openai"]
    with pytest.raises(UnknownNameError, match="laion2b_s34b_b79k"):
        IMAGE["open-clip:ViT-B-32:laion2b_s34b_b79"]


def test_nothing_is_logged_and_logging_is_not_set_up(caplog: pytest.LogCaptureFixture):
    build_image(IMAGE["open-clip:tiny-resnet"], Load(source=None))
    assert not caplog.records


def test_two_models_of_different_activation_are_described_differently(saved):
    file, _, _ = saved("tiny-vit")
    described = [build_image(IMAGE[f"open-clip:{name}:{file}"], Load(source=file)).describe() for name in ("tiny-vit", "tiny-vit-quickgelu")]
    assert described[0]["weights"] == described[1]["weights"]
    assert described[0] != described[1]
