"""Folders of transformers' LLaVA in all three spellings of its names, against the class itself."""

import json

import numpy as np
import pytest
import torch

import vlm
from vlm.errors import CheckpointError, ConfigError
from vlm.models.foreign.assemble import Sources
from vlm.models.foreign.huggingface import import_huggingface, resize_of

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
JINJA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QUESTION = "<image>\nWhat is this?"


def llava(parts, **changed):
    """The class itself, with the weights of the parts."""
    import transformers

    image = parts.tokenizer.convert_tokens_to_ids("<image>")
    values = {"image_token_index": image, "vision_feature_select_strategy": "default" if parts.first else "full", "projector_hidden_act": "gelu"}
    config = transformers.LlavaConfig(vision_config=parts.vision.config, text_config=parts.language.config, **(values | changed))
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(parts.vision.state_dict())
    model.model.multi_modal_projector.linear_1.load_state_dict(parts.projector[0].state_dict(), strict=False)
    model.model.multi_modal_projector.linear_2.load_state_dict(parts.projector[2].state_dict(), strict=False)
    model.model.language_model.load_state_dict(parts.language.model.state_dict())
    model.lm_head.load_state_dict(parts.language.lm_head.state_dict())
    return model


def in_memory(name):
    return name


def saved(name):
    for theirs, old in (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")):
        if name.startswith(theirs):
            return old + name.removeprefix(theirs)
    return name.removeprefix("model.")


def hub(name):
    return saved(name).replace("vision_tower.", "vision_tower.vision_model.")


def write(model, parts, save, folder, spelling=hub, **values):
    """The folder, its chat template and its image processor."""
    config = model.config.to_dict() | {"architectures": ["LlavaForConditionalGeneration"]} | values
    parts.tokenizer.chat_template = JINJA
    save({spelling(name): tensor for name, tensor in model.state_dict().items()}, folder, config, parts.tokenizer)
    processor = {"image_mean": MEAN, "image_std": STD, "do_resize": True, "size": {"shortest_edge": 32}, "do_center_crop": True, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


@torch.no_grad()
def theirs(model, parts, prompt, picture, tokens):
    pixels = (torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    ids = parts.tokenizer(prompt.replace("<image>", "<image>" * tokens), add_special_tokens=False, return_tensors="pt").input_ids
    return model(input_ids=ids, pixel_values=pixels[None]).logits[0]


@pytest.mark.parametrize("spelling", [in_memory, saved, hub])
def test_logits_are_those_of_the_class(parts, save, ours, square, tmp_path, spelling):
    tiny = parts()
    model = llava(tiny)
    path = write(model, tiny, save, tmp_path / "llava", spelling)
    done = import_huggingface(path, tmp_path / "out", Sources())
    assert (done.config.connector, done.config.template, done.config.resize) == ("mlp2x-gelu", "llava-hf", "crop")
    logits, prompt = ours(vlm.load(done.folder, device="cpu", precision="fp32"), QUESTION, square)
    assert prompt == "<s>USER: <image>\nWhat is this? ASSISTANT:"
    torch.testing.assert_close(logits, theirs(model, tiny, prompt, square, 16), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("vision", "first", "tokens"), [("clip", False, 17), ("siglip", False, 16), ("siglip", True, 15)])
def test_first_token_is_dropped_as_the_config_says(parts, save, ours, square, tmp_path, vision, first, tokens):
    tiny = parts(vision=vision)
    tiny.first = first
    model = llava(tiny)
    done = import_huggingface(write(model, tiny, save, tmp_path / "llava"), tmp_path / "out", Sources())
    imported = vlm.load(done.folder, device="cpu", precision="fp32")
    assert imported.tokens_per_tile == tokens
    logits, prompt = ours(imported, QUESTION, square)
    torch.testing.assert_close(logits, theirs(model, tiny, prompt, square, tokens), atol=1e-5, rtol=0)


def test_other_layer_activation_and_no_biases(parts, save, ours, square, tmp_path):
    tiny = parts()
    model = llava(tiny, vision_feature_layer=-1, projector_hidden_act="gelu_pytorch_tanh", multimodal_projector_bias=False)
    done = import_huggingface(write(model, tiny, save, tmp_path / "llava"), tmp_path / "out", Sources())
    assert (done.config.connector, done.config.feature_layer) == ("mlp:32@gelu-tanh", -1)
    logits, prompt = ours(vlm.load(done.folder, device="cpu", precision="fp32"), QUESTION, square)
    torch.testing.assert_close(logits, theirs(model, tiny, prompt, square, 16), atol=1e-5, rtol=0)


def test_tied_embeddings_need_no_head(parts, save, ours, square, tmp_path):
    tiny = parts("qwen2", num_key_value_heads=2, tie_word_embeddings=True)
    model = llava(tiny, tie_word_embeddings=True)
    path = write(model, tiny, save, tmp_path / "llava", lambda name: "drop" if name.startswith("lm_head") else hub(name))
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    weights.pop("drop")
    save_file(weights, path / "model.safetensors")
    done = import_huggingface(path, tmp_path / "out", Sources())
    logits, prompt = ours(vlm.load(done.folder, device="cpu", precision="fp32"), QUESTION, square)
    torch.testing.assert_close(logits, theirs(model, tiny, prompt, square, 16), atol=1e-5, rtol=0)


def test_tensors_are_counted_and_nothing_is_left_behind(parts, save, tmp_path):
    tiny = parts()
    path = write(llava(tiny), tiny, save, tmp_path / "llava", lambda name: name.replace("model.multi_modal_projector.linear_1.bias", "audio.bias"))
    with pytest.raises(CheckpointError, match=r"connector of .* lacks 0.bias"):
        import_huggingface(path, tmp_path / "out", Sources())
    path = write(llava(tiny), tiny, save, tmp_path / "newline", lambda name: name.replace("model.language_model.norm.weight", "model.image_newline"))
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor \(model.norm.weight\) of the language model"):
        import_huggingface(path, tmp_path / "out", Sources())
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"architectures": ["LlavaNextForConditionalGeneration"]}, "tiles of several resolutions"),
        ({"model_type": "llama"}, "of type 'llama' in a layout"),
        ({"vision_feature_layer": [-2, -5]}, r"layers \[-2, -5\]; one layer"),
        ({"projector_hidden_act": "tanh"}, "activation 'tanh'"),
    ],
)
def test_what_ours_cannot_be_is_refused(parts, save, tmp_path, values, match):
    tiny = parts()
    path = write(llava(tiny), tiny, save, tmp_path / "llava", **values)
    with pytest.raises(CheckpointError, match=match):
        import_huggingface(path, tmp_path / "out", Sources())


def test_prompt_is_the_folders_or_the_users(parts, save, tmp_path):
    tiny = parts()
    path = write(llava(tiny), tiny, save, tmp_path / "llava")
    assert import_huggingface(path, tmp_path / "named", Sources(template="vicuna-v1")).config.template == "vicuna-v1"
    (path / "chat_template.jinja").write_text("{{ 'Q: ' }}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"writes 'Q:', as none of ours does"):
        import_huggingface(path, tmp_path / "out", Sources())
    (path / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="has no chat template"):
        import_huggingface(path, tmp_path / "out", Sources())


def test_pictures_become_square_as_the_processor_says():
    assert resize_of({"do_pad": True, "do_center_crop": True}, "clip_vision_model") == "pad"
    assert resize_of({}, "clip_vision_model") == "crop"
    assert resize_of({"do_resize": True}, "siglip_vision_model") == "squash"
