"""LLaVA's own layout on tiny parts, against its forward pass stated once more (conftest)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

import vlm
from vlm.backbones.language.chat_templates import find_template, fit_template
from vlm.data.chat import encode_chat
from vlm.errors import CheckpointError
from vlm.messages import Message
from vlm.models.foreign.assemble import Sources
from vlm.models.foreign.llava import import_llava
from vlm.models.generate import encode_prompt
from vlm.types import IGNORE_INDEX

VICUNA = Path(__file__).parents[2] / "data" / "prismatic_golden" / "vicuna" / "tokenizer"

QUESTION = "<image>\nWhat is this?"
CONFIG = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad"}
CONFIG |= {"mm_hidden_size": 16, "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "use_mm_proj": True, "tune_mm_mlp_adapter": False}


@pytest.fixture
def write(save, tmp_path):
    """`write(parts, ...)`: the folder of a checkpoint, and beside it that of its vision tower."""

    def make(parts, *, name="llava-v1.5-tiny", file="pytorch_model.bin", with_vision=False, kind="llava_llama", **values):
        tower = tmp_path / "tower"
        if not tower.exists():
            parts.vision.save_pretrained(str(tower))
        tensors = dict(parts.language.state_dict())
        tensors |= {f"model.mm_projector.{key}": tensor for key, tensor in parts.projector.state_dict().items()}
        if with_vision:
            tensors |= {f"model.vision_tower.vision_tower.vision_model.{key}": tensor for key, tensor in parts.vision.state_dict().items()}
        config = parts.language.config.to_dict() | CONFIG | {"model_type": kind, "mm_vision_tower": str(tower)} | values
        return save(tensors, tmp_path / name, config, parts.tokenizer, name=file)

    return make


def compare(parts, ours, folder, square):
    logits, prompt = ours(vlm.load(folder, device="cpu", precision="fp32"), QUESTION, square)
    torch.testing.assert_close(logits, parts.logits(prompt, square), atol=1e-5, rtol=0)
    return prompt


@pytest.mark.parametrize(
    ("layers", "kind", "name"), [(1, "linear", "linear"), (2, "mlp2x_gelu", "mlp2x-gelu"), (4, "mlp4x_gelu", "mlp:32x32x32@gelu")]
)
def test_logits_are_those_of_llava_with_each_projector(parts, write, ours, square, tmp_path, layers, kind, name):
    tiny = parts(layers=layers)
    done = import_llava(write(tiny, mm_projector_type=kind), tmp_path / "out", Sources())
    assert (done.config.connector, done.config.resize, done.config.template, done.notes) == (name, "pad", "vicuna-v1", ())
    prompt = compare(tiny, ours, done.folder, square)
    assert prompt.startswith("<s>A chat between a curious user") and prompt.endswith("USER: <image>\nWhat is this? ASSISTANT:")


@pytest.fixture
def with_llamas_tokenizer(parts, write, tmp_path):
    """Import a LLaVA with Vicuna's tokenizer, whose config says `legacy` as told, or nothing of it; the model, and that tokenizer."""

    def make(legacy: bool | None):
        path = write(parts(vocab_size=384))
        for file in path.glob("*token*"):
            file.unlink()
        for file in VICUNA.iterdir():
            shutil.copy(file, path)
        values = json.loads((VICUNA / "tokenizer_config.json").read_text(encoding="utf-8"))
        values |= {"legacy": legacy}
        (path / "tokenizer_config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}), encoding="utf-8")
        own = transformers.AutoTokenizer.from_pretrained(path, legacy=legacy is not False)  # true where nothing is said, in transformers 4
        return vlm.load(import_llava(path, tmp_path / "out", Sources()).folder, device="cpu", precision="fp32"), own

    return make


@pytest.mark.parametrize("legacy", [True, False, None])
def test_texts_between_pictures_are_tokenized_one_by_one(with_llamas_tokenizer, legacy):
    """`tokenizer_image_token`, by which LLaVA trains and asks, with the tokenizer of transformers 4: each text begins with a space more than it has."""
    model, own = with_llamas_tokenizer(legacy)
    talk = [Message("user", "<image>\nis <image> and<image><image> 日本?"), Message("assistant", "a dog"), Message("user", "why?\n<image>")]
    text = "".join(span.text for span in model.template.render(talk)).removeprefix("<s>")
    before, *chunks = [own(f" {chunk}" if chunk else "").input_ids for chunk in text.split("<image>")]
    image = model.language.image_token_id
    expected = before + [token for chunk in chunks for token in [image, *chunk[1:]]]  # without BOS
    assert encode_prompt(model, talk, [1] * 5)[0].tolist() == expected


@pytest.mark.parametrize("legacy", [True, False])
def test_caption_right_behind_a_picture_is_trained_whole(with_llamas_tokenizer, legacy):
    """`preprocess_plain`: the space that the caption begins with is the caption's."""
    model, own = with_llamas_tokenizer(legacy)
    language = model.language
    template = fit_template(find_template("plain"), language.tokenizer)
    talk = [Message("user", "<image>"), Message("assistant", "a dog")]
    encoded = encode_chat(talk, template=template, tokenizer=language.tokenizer, image_token_id=language.image_token_id, tokens_per_image=[2])
    bos, *caption = own("a dog\n").input_ids
    assert encoded.ids.tolist() == [bos, *[language.image_token_id] * 2, *caption]
    assert encoded.labels.tolist() == [IGNORE_INDEX] * 3 + caption


def test_no_space_comes_between_a_picture_and_an_end_token(with_llamas_tokenizer):
    tokenizer = with_llamas_tokenizer(False)[0].language.tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("a<image></s>").input_ids) == ["<s>", "▁a", "<image>", "</s>"]


def test_vision_backbone_of_the_checkpoint_is_taken(parts, write, ours, square, tmp_path):
    tiny = parts()
    path = write(tiny, with_vision=True, file="model.safetensors")
    with torch.no_grad():
        other = parts()
        other.vision.embeddings.patch_embedding.weight.zero_()
    shutil.rmtree(tmp_path / "tower")
    other.vision.save_pretrained(str(tmp_path / "tower"))  # of which config and statistics alone are read
    compare(tiny, ours, import_llava(path, tmp_path / "out", Sources()).folder, square)


@pytest.mark.parametrize(("feature", "layer", "first"), [("cls_patch", -2, False), ("patch", -1, True)])
@pytest.mark.parametrize("with_vision", [True, False])
def test_features_are_selected_as_the_config_says(parts, write, ours, square, tmp_path, feature, layer, first, with_vision):
    tiny = parts()
    tiny.first, tiny.layer = first, layer
    path = write(tiny, mm_vision_select_feature=feature, mm_vision_select_layer=layer, with_vision=with_vision)
    done = import_llava(path, tmp_path / "out", Sources())
    compare(tiny, ours, done.folder, square)
    assert vlm.load(done.folder, device="cpu", precision="fp32").tokens_per_tile == (16 if first else 17)


def test_mistral_has_its_own_mode(parts, write, ours, square, tmp_path):
    tiny = parts("mistral", num_key_value_heads=2, sliding_window=None)
    done = import_llava(write(tiny, kind="llava_mistral", name="llava-mistral-tiny"), tmp_path / "out", Sources())
    assert compare(tiny, ours, done.folder, square) == "<s>[INST] <image>\nWhat is this? [/INST]"


def test_projector_alone_takes_the_language_model_that_it_names(parts, save, ours, square, tmp_path):
    tiny = parts()
    tiny.vision.save_pretrained(str(tmp_path / "tower"))
    tiny.language.save_pretrained(str(tmp_path / "base"))
    tiny.tokenizer.save_pretrained(str(tmp_path / "base"))
    weights = {f"model.mm_projector.{key}": tensor for key, tensor in tiny.projector.state_dict().items()}
    values = tiny.language.config.to_dict() | CONFIG | {"model_type": "llava_llama", "mm_vision_tower": str(tmp_path / "tower")}
    path = save(weights, tmp_path / "pretrain", values, None, name="mm_projector.bin")
    with pytest.raises(CheckpointError, match="holds no language model, and names none"):
        import_llava(path, tmp_path / "out", Sources())
    (path / "config.json").write_text(json.dumps(values | {"_name_or_path": str(tmp_path / "base")}, default=str), encoding="utf-8")
    done = import_llava(path, tmp_path / "out", Sources())
    assert (done.config.template, done.config.language) == ("plain", f"hf:{tmp_path / 'base'}")
    assert compare(tiny, ours, done.folder, square) == "<s><image>"
    named = import_llava(path, tmp_path / "named", Sources(language=str(tmp_path / "base"), template="vicuna-v1"))
    compare(tiny, ours, named.folder, square)


@pytest.fixture
def adapt(save, tmp_path):
    """`adapt(parts, base)`: the folder that LLaVA's train.py leaves behind with --lora_enable, and the parts with the adapter on them."""

    def make(parts, base, *, name="llava-v1.5-tiny-lora", file="adapter_model.bin", **values):
        from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

        if not (tmp_path / "tower").exists():
            parts.vision.save_pretrained(str(tmp_path / "tower"))
        config = parts.language.config.to_dict() | CONFIG | {"model_type": "llava_llama", "mm_vision_tower": str(tmp_path / "tower")}
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # find_all_linear_names
        setting = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM", target_modules=targets)
        parts.language = get_peft_model(parts.language, setting).eval()
        torch.manual_seed(5)
        for key, parameter in parts.language.named_parameters():
            if ".lora_" in key:
                torch.nn.init.normal_(parameter, std=0.2)
        path = save(get_peft_model_state_dict(parts.language), tmp_path / name, config, None, name=file)
        setting = {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.05,
            "target_modules": targets,
            "base_model_name_or_path": str(base),
        }
        (path / "adapter_config.json").write_text(json.dumps(setting | values), encoding="utf-8")
        beside = {f"base_model.model.model.mm_projector.{key}": tensor.detach() for key, tensor in parts.projector.state_dict().items()}
        torch.save(beside, path / "non_lora_trainables.bin")
        return path

    return make


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's look at transformers
@pytest.mark.parametrize("file", ["adapter_model.bin", "adapter_model.safetensors"])
def test_adapter_beside_its_base(parts, adapt, ours, square, tmp_path, file):
    tiny = parts()
    tiny.language.save_pretrained(str(tmp_path / "base"))
    tiny.tokenizer.save_pretrained(str(tmp_path / "base"))
    path = adapt(tiny, tmp_path / "base", file=file)
    done = import_llava(path, tmp_path / "out", Sources())
    lora = done.config.lora.language
    assert (done.config.template, lora.rank, lora.alpha, lora.dropout, lora.targets.count("|")) == ("vicuna-v1", 4, 8, 0.05, 6)
    compare(tiny, ours, done.folder, square)
    (path / "adapter_config.json").write_text((path / "adapter_config.json").read_text().replace(str(tmp_path / "base"), "some/other"))
    with pytest.raises(CheckpointError, match=r"holds no language model, and names some/other. Name it with --language-source"):
        import_llava(path, tmp_path / "without", Sources())
    compare(tiny, ours, import_llava(path, tmp_path / "named", Sources(language=str(tmp_path / "base"))).folder, square)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's look at transformers
def test_adapter_on_a_llava_takes_its_language_model_and_the_new_projector(parts, adapt, write, ours, square, tmp_path):
    tiny = parts()
    base = write(tiny, with_vision=True)
    torch.manual_seed(7)
    for parameter in tiny.projector.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    path = adapt(tiny, base)
    compare(tiny, ours, import_llava(path, tmp_path / "out", Sources()).folder, square)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's look at transformers
def test_adapters_that_are_not_whole_or_not_plain_are_refused(parts, adapt, tmp_path):
    tiny = parts()
    tiny.language.save_pretrained(str(tmp_path / "base"))
    tiny.tokenizer.save_pretrained(str(tmp_path / "base"))
    path = adapt(tiny, tmp_path / "base")
    plain = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    for values, match in [
        ({"use_dora": True}, "'use_dora'"),
        ({"rank_pattern": {"q_proj": 2}}, "'rank_pattern'"),
        ({"r": 0}, "no positive r"),
        ({"peft_type": "IA3"}, "'IA3'"),
    ]:
        (path / "adapter_config.json").write_text(json.dumps(plain | values), encoding="utf-8")
        with pytest.raises(CheckpointError, match=match):
            import_llava(path, tmp_path / "out", Sources())
    (path / "adapter_config.json").write_text(json.dumps(plain), encoding="utf-8")
    weights = torch.load(path / "adapter_model.bin", weights_only=True)
    strange = {"base_model.model.model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.lora_A.weight": torch.zeros(4, 16)}
    torch.save(weights | strange, path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"a LoRA adapter on model.vision_tower.*; adapters on linear layers of the blocks"):
        import_llava(path, tmp_path / "out", Sources())
    (path / "non_lora_trainables.bin").unlink()
    with pytest.raises(CheckpointError, match=r"an adapter but no non_lora_trainables.bin"):
        import_llava(path, tmp_path / "out", Sources())
    assert not list(tmp_path.glob("out*"))


def test_mode_is_chosen_as_llavas_scripts_do(parts, write, tmp_path):
    tiny = parts()
    for number, (name, template) in enumerate(
        [("llava-llama-2-x", "llava-llama-2"), ("llava-v1.6-34b", "llava-chatml-direct"), ("checkpoint-7", "vicuna-v1"), ("other", "vicuna-v1")]
    ):
        done = import_llava(write(tiny, name=name), tmp_path / f"out{number}", Sources())
        assert done.config.template == template
    assert "does not tell the conversation mode" in done.notes[0]


# llava/conversation.py of haotian-liu/LLaVA 1.2.2, written out by its get_prompt for a picture with a question, an answer and another question.
MODES = {
    "llava-v1": "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the "
    "human's questions. USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:",
    "llava-llama-2": "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n<image>\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST]",
    "llava-mistral-instruct": "[INST] <image>\nQ1 [/INST] A1 </s>[INST] Q2 [/INST]",
    "llava-chatml-direct": "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nQ1<|im_end|><|im_start|>assistant\nA1<|im_end|>"
    "<|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n",
    "llava-mpt": "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.<|im_end|>"
    "<|im_start|>user\n<image>\nQ1<|im_end|><|im_start|>assistant\nA1<|im_end|><|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n",
}


@pytest.mark.parametrize("name", MODES)
def test_prompts_are_those_of_the_conversation_modes(name):
    talk = [Message("user", "<image>\nQ1"), Message("assistant", "A1"), Message("user", "Q2")]
    assert "".join(span.text for span in find_template(name).render(talk)).removeprefix("<s>") == MODES[name]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"image_aspect_ratio": "anyres"}, "tiles of several resolutions"),
        ({"mm_use_im_start_end": True}, "<im_start> and <im_end> around"),
        ({"mm_projector_type": "resampler"}, "projector of type 'resampler'"),
        ({"mm_projector_type": "mlp3x_gelu"}, "projector of 2 layers, but its config.json says mlp3x_gelu"),
        ({"kind": "llava_mpt"}, "language model of type 'llava_mpt'"),
        ({"mm_vision_tower": "some/where-else"}, "No vision backbone is known that is loaded from 'some/where-else'"),
        ({"hidden_size": 48}, r"has shape .* expected .* Name the language model"),
        ({"hidden_size": "wide"}, "makes no model"),
    ],
)
def test_what_ours_cannot_be_is_refused(parts, write, tmp_path, values, match):
    path = write(parts(), **values)
    with pytest.raises(CheckpointError, match=match):
        import_llava(path, tmp_path / "out", Sources())
    assert not list(tmp_path.glob("out*"))


def test_wrong_folders_and_surplus_tensors_are_named(parts, write, save, tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        import_llava(tmp_path, tmp_path / "out", Sources())
    path = write(parts())
    weights = torch.load(path / "pytorch_model.bin", weights_only=True)
    torch.save(weights | {"model.image_newline": torch.zeros(32)}, path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds 1 tensor \(model.image_newline\) that the language model does not have"):
        import_llava(path, tmp_path / "out", Sources())
    (path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="could not be loaded"):
        import_llava(path, tmp_path / "out", Sources())
    (path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"holds whole weights and an adapter"):
        import_llava(path, tmp_path / "out", Sources())
