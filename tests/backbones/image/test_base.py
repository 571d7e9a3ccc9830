import json
import math
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import build_image, joint_scale
from vlm.backbones.image.tiny import SPECS
from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT
from vlm.errors import CheckpointError, ConfigError
from vlm.types import ImageEncoder

FULL_SIZE = [name for name in IMAGE if not name.startswith("tiny-")]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_entry_has_the_parameters_and_shapes_that_its_spec_says(name: str):
    spec = IMAGE[name]
    with torch.device("meta"):
        encoder = spec.build(spec, Load(source=None))
        assert encoder(torch.empty(2, 3, spec.image_size, spec.image_size, dtype=torch.uint8)).shape == (2, spec.width)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == spec.num_parameters
    assert isinstance(encoder, ImageEncoder)
    assert (encoder.width, encoder.image_policy) == (spec.width, spec.image_policy)
    assert encoder.blocks()


@pytest.mark.parametrize("name", [name for name in TEXT if name.startswith(("clip-", "siglip-", "tiny-"))])
def test_image_and_text_entries_of_one_name_are_halves_of_one_model(name: str):
    image, text = IMAGE[name.removesuffix("-text") + "-image"], TEXT[name]
    assert (image.source, image.width) == (text.source, text.width)


def test_vectors_are_those_of_transformers(name: str, folder, pixels):
    path, model = folder(name)
    encoder = build_image(SPECS[name], Load(source=path))
    expected = model.get_image_features(encoder.tower.normalize(pixels)).pooler_output
    torch.testing.assert_close(encoder(pixels), expected, rtol=0, atol=1e-5)
    assert expected.std(0).mean() > 0.05  # the pictures differ, so equality says something
    assert not torch.allclose(expected.norm(dim=-1), torch.ones(2), atol=0.05)


@pytest.mark.parametrize("saving", [{}, {"max_shard_size": "8KB"}], ids=["one file", "shards"])
def test_scale_and_bias_are_those_of_transformers(name: str, saving: dict, folder):
    path, model = folder(name, **saving)
    scale, bias = joint_scale(SPECS[name], Load(source=path))
    assert scale == pytest.approx(math.exp(model.logit_scale.item()))
    assert bias == pytest.approx(getattr(model, "logit_bias", torch.zeros(1)).item())


def test_scaled_cosines_are_the_logits_of_transformers(name: str, folder, pixels):
    path, model = folder(name)
    encoder = build_image(SPECS[name], Load(source=path))
    ids = torch.tensor([[0, 7, 9, 1], [0, 30, 31, 1]])
    output = model(input_ids=ids, pixel_values=encoder.tower.normalize(pixels))
    scale, bias = joint_scale(SPECS[name], Load(source=path))
    cosines = torch.nn.functional.normalize(encoder(pixels), dim=-1) @ output.text_embeds.T
    torch.testing.assert_close(scale * cosines + bias, output.logits_per_image, rtol=1e-4, atol=1e-4)


def test_weights_in_torchs_own_format_load_as_well(folder, pixels):
    path, model = folder("tiny-clip-image")
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    encoder = build_image(SPECS["tiny-clip-image"], Load(source=path))
    torch.testing.assert_close(encoder(pixels), model.get_image_features(encoder.tower.normalize(pixels)).pooler_output, rtol=0, atol=1e-5)
    assert joint_scale(SPECS["tiny-clip-image"], Load(source=path))[0] == pytest.approx(math.exp(model.logit_scale.item()))


def test_scale_without_weights_is_what_training_begins_with():
    assert joint_scale(SPECS["tiny-clip-image"], Load(source=None)) == (pytest.approx(14.2857, abs=1e-4), 0)
    assert joint_scale(IMAGE["siglip2-b16-224-image"], Load(source=None)) == (10, -10)


@pytest.mark.parametrize("name", ["dinov2-l14-reg-224-image", "efficientnet-lite0-64-image", "dinosiglip-224-image"])
def test_encoder_without_a_text_half_has_no_scale(name: str):
    with pytest.raises(ConfigError, match="was trained without texts"):
        joint_scale(IMAGE[name], Load(source=None))


def test_folder_is_read_without_the_network(name: str, folder, monkeypatch: pytest.MonkeyPatch):
    path, _ = folder(name)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    build_image(SPECS[name], Load(source=path))
    joint_scale(SPECS[name], Load(source=path))


def change_weights(path: Path, **tensors: torch.Tensor | None) -> None:
    weights = load_file(path / "model.safetensors")
    changed = {key.replace("__", "."): value for key, value in tensors.items()}
    save_file({key: value for key, value in (weights | changed).items() if value is not None}, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "key", ["visual_projection__weight", "vision_model__encoder__layers__1__mlp__fc1__bias", "vision_model__post_layernorm__weight"]
)
def test_missing_tensor_is_named(key: str, folder):
    path, _ = folder("tiny-clip-image")
    change_weights(path, **{key: None})
    with pytest.raises(CheckpointError, match=key.replace("__", r"\.").removeprefix(r"vision_model\.")):
        build_image(SPECS["tiny-clip-image"], Load(source=path))


def test_missing_scale_is_named(name: str, folder):
    path, _ = folder(name)
    change_weights(path, logit_scale=None)
    with pytest.raises(CheckpointError, match="lacks logit_scale"):
        joint_scale(SPECS[name], Load(source=path))


def test_projection_of_another_width_is_named_with_both_shapes(folder):
    path, _ = folder("tiny-clip-image")
    change_weights(path, visual_projection__weight=torch.ones(9, 16))
    with pytest.raises(CheckpointError, match=r"visual_projection\.weight is \(9, 16\), expected \(8, 16\)"):
        build_image(SPECS["tiny-clip-image"], Load(source=path))


def test_deeper_model_is_refused_with_both_values(folder):
    path, _ = folder("tiny-clip-image")
    config = json.loads((path / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 4
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="num_hidden_layers is 4, expected 3"):
        build_image(SPECS["tiny-clip-image"], Load(source=path))


@pytest.mark.parametrize("source", ["/no/such/folder", Path("no/folder")])
def test_missing_folder_is_one_line_with_a_remedy(name: str, source: str | Path):
    for reading in (build_image, joint_scale):
        with pytest.raises(CheckpointError, match=r"no folder .*Name a local folder") as error:
            reading(SPECS[name], Load(source=source))
        assert "\n" not in str(error.value)


def test_hub_that_cannot_be_reached_is_one_line_with_a_remedy():
    for name in ("clip-b32-224-image", "siglip-b16-224-image", "llm2clip-b16-224-image"):
        for reading in (build_image, joint_scale):
            with pytest.raises(CheckpointError, match=rf"{IMAGE[name].source}.*Name a local folder") as error:
                reading(IMAGE[name], Load(source=IMAGE[name].source))
            assert "\n" not in str(error.value)


def test_folder_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no weights at .*model\.safetensors nor pytorch_model\.bin"):
        joint_scale(SPECS["tiny-clip-image"], Load(source=tmp_path))


@pytest.mark.parametrize("name", sorted(SPECS))
def test_encoder_keeps_the_protocol_and_runs_in_bf16(name: str, pixels):
    encoder = build_image(SPECS[name], Load(source=None, dtype=torch.bfloat16))
    assert isinstance(encoder, ImageEncoder)
    assert encoder(pixels).dtype == torch.bfloat16
    assert encoder(pixels).shape == (2, SPECS[name].width)
    torch.testing.assert_close(encoder(pixels).float(), build_image(SPECS[name], Load(source=None))(pixels), rtol=0.05, atol=0.05)
    assert sum(weight.numel() for weight in encoder.parameters()) == SPECS[name].num_parameters


@pytest.mark.parametrize("name", sorted(SPECS))
def test_same_name_gives_the_same_weights_and_leaves_the_random_state_alone(name: str):
    first = build_image(SPECS[name], Load(source=None))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    second = build_image(SPECS[name], Load(source=None))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_pixels_of_another_size_are_refused_with_both_sizes(name: str):
    with pytest.raises(ConfigError, match=r"32x32 pixels, got 24x24"):
        build_image(SPECS[name], Load(source=None))(torch.zeros(1, 3, 24, 24, dtype=torch.uint8))


def test_description_is_json_and_the_same_for_the_same_numbers(name: str, folder):
    path, _ = folder(name)
    described = build_image(SPECS[name], Load(source=path)).describe()
    assert json.loads(json.dumps(described)) == json.loads(json.dumps(build_image(SPECS[name], Load(source=path)).describe()))


def test_description_tells_whatever_changes_the_vectors(folder):
    path, _ = folder("tiny-clip-image")
    spec = SPECS["tiny-clip-image"]
    policy = replace(spec.image_policy, mode="squash")
    other = replace(spec, image_policy=policy)
    encoders = [
        build_image(spec, Load(source=path)),
        build_image(spec, Load(source=None)),
        build_image(spec, Load(source=path, dtype=torch.bfloat16)),
        build_image(other, Load(source=path)),
        build_image(replace(spec, architecture=spec.architecture | {"hidden_act": "gelu"}), Load(source=path)),
        build_image(SPECS["tiny-siglip-image"], Load(source=None)),
    ]
    with torch.no_grad():
        encoders.append(build_image(spec, Load(source=path)))
        encoders[-1].projection.weight.mul_(2)
    descriptions = {json.dumps(encoder.describe(), sort_keys=True) for encoder in encoders}
    assert len(descriptions) == len(encoders)


def test_policy_that_is_replaced_on_the_encoder_is_described():
    encoder = build_image(SPECS["tiny-clip-image"], Load(source=None))
    before = encoder.describe()
    encoder.image_policy = replace(encoder.image_policy, reduced_jpeg=True)
    assert encoder.describe() != before
