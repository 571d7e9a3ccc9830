"""xtuner's three layouts on tiny parts, against LLaVA's forward pass stated once more (conftest)."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from tokenizers import Tokenizer

import vlm
from vlm.errors import CheckpointError, ConfigError
from vlm.models.foreign.assemble import Sources
from vlm.models.foreign.xtuner import import_xtuner

VICUNA = Path(__file__).parents[2] / "data" / "prismatic_golden" / "vicuna" / "tokenizer"
QUESTION = "<image>\nWhat is this?"
LLAMA_3 = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat is this?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)


def save_projector(parts, save, folder, *, bias=True):
    """As xtuner's ProjectorModel is saved."""
    values = {"visual_hidden_size": 16, "llm_hidden_size": 32, "depth": 2, "hidden_act": "gelu", "bias": bias, "model_type": "projector"}
    save({f"model.{name}": tensor for name, tensor in parts.projector.state_dict().items()}, folder / "projector", values, None)


def with_adapter(module, folder, targets, *, rank=4):
    """The module under a trained adapter, which peft saves as xtuner does; returns it merged."""
    adapted = peft.get_peft_model(module, peft.LoraConfig(r=rank, lora_alpha=8, lora_dropout=0.05, target_modules=targets))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(str(folder))
    return adapted.merge_and_unload()


def save_base(parts, folder):
    parts.language.save_pretrained(str(folder / "base"))
    parts.tokenizer.save_pretrained(str(folder / "base"))
    parts.vision.save_pretrained(str(folder / "tower"))


def compare(parts, ours, folder, square, prompt):
    logits, seen = ours(vlm.load(folder, device="cpu", precision="fp32"), QUESTION, square)
    assert seen == prompt
    torch.testing.assert_close(logits, parts.logits(seen, square), atol=1e-5, rtol=0)


def test_own_layout_with_all_of_it_trained(parts, save, ours, square, tmp_path):
    tiny = parts()
    path = tmp_path / "xtuner"
    save(dict(tiny.language.state_dict()), path, tiny.language.config.to_dict(), tiny.tokenizer)
    save_projector(tiny, save, path)
    tiny.vision.save_pretrained(str(path / "visual_encoder"))
    done = import_xtuner(path, tmp_path / "out", Sources())
    assert (done.config.template, done.config.resize, done.config.connector) == ("llama-3", "pad", "mlp2x-gelu")
    compare(tiny, ours, done.folder, square, LLAMA_3)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's look at transformers
def test_own_layout_with_adapters_on_both_towers(parts, save, ours, square, tmp_path):
    tiny = parts()
    save_base(tiny, tmp_path)
    path = tmp_path / "xtuner"
    save_projector(tiny, save, path)
    tiny.language = with_adapter(tiny.language, path / "llm_adapter", ["q_proj", "down_proj"])
    tiny.vision = with_adapter(tiny.vision, path / "visual_encoder_adapter", ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"])
    done = import_xtuner(path, tmp_path / "out", Sources(vision=str(tmp_path / "tower"), language=str(tmp_path / "base")))
    assert (done.config.lora.language.rank, done.config.lora.language.alpha, done.config.lora.vision.rank) == (4, 8, 0)
    compare(tiny, ours, done.folder, square, LLAMA_3)
    with pytest.raises(CheckpointError, match=r"lacks|No vision backbone|There is no folder"):
        import_xtuner(path, tmp_path / "without", Sources(vision=str(tmp_path / "nowhere"), language=str(tmp_path / "base")))


def test_own_layout_of_a_projector_alone_needs_the_towers(parts, save, ours, square, tmp_path):
    tiny = parts()
    save_base(tiny, tmp_path)
    path = tmp_path / "xtuner"
    save_projector(tiny, save, path)
    with pytest.raises(CheckpointError, match=r"names none, because it was frozen. Name it with --language-source"):
        import_xtuner(path, tmp_path / "out", Sources(vision=str(tmp_path / "tower")))
    done = import_xtuner(path, tmp_path / "out", Sources(vision=str(tmp_path / "tower"), language=str(tmp_path / "base")))
    compare(tiny, ours, done.folder, square, LLAMA_3)


def test_projector_of_another_depth_than_its_config_says_is_refused(parts, save, tmp_path):
    tiny = parts(layers=1)
    save_base(tiny, tmp_path)
    save_projector(tiny, save, tmp_path / "xtuner")
    with pytest.raises(CheckpointError, match=r"projector has a projector of 1 layers, but its config\.json says 2\. Copy both"):
        import_xtuner(tmp_path / "xtuner", tmp_path / "out", Sources(vision=str(tmp_path / "tower"), language=str(tmp_path / "base")))
    assert not (tmp_path / "out").exists()


def test_phi_3_opens_with_bos(parts, save, ours, square, tmp_path):
    tiny = parts("phi3", num_key_value_heads=2)
    path = tmp_path / "xtuner"
    save(dict(tiny.language.state_dict()), path, tiny.language.config.to_dict(), tiny.tokenizer)
    save_projector(tiny, save, path)
    tiny.vision.save_pretrained(str(path / "visual_encoder"))
    done = import_xtuner(path, tmp_path / "out", Sources(template="xtuner-phi-3"))
    compare(tiny, ours, done.folder, square, "<s><|user|>\n<image>\nWhat is this?<|end|>\n<|assistant|>\n")


@pytest.fixture
def official(parts, save, tmp_path):
    """The parts of a checkpoint in LLaVA's layout, and its folder; other values of its config may be given."""

    def make(**others):
        tiny = parts()
        save_base(tiny, tmp_path)
        weights = dict(tiny.language.state_dict()) | {f"model.mm_projector.{name}": tensor for name, tensor in tiny.projector.state_dict().items()}
        weights |= {f"model.vision_tower.vision_tower.vision_model.{name}": tensor for name, tensor in tiny.vision.state_dict().items()}
        values = tiny.language.config.to_dict() | {
            "model_type": "llava",
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_tower": str(tmp_path / "tower"),
        }
        values |= {"mm_hidden_size": 16, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad"}
        values |= {"mm_use_im_patch_token": False, "mm_use_im_start_end": False, "unfreeze_mm_vision_tower": True, "use_mm_proj": True}
        return tiny, save(weights, tmp_path / "official", values | others, tiny.tokenizer)

    return make


def test_official_layout(official, ours, square, tmp_path):
    tiny, path = official()
    compare(tiny, ours, import_xtuner(path, tmp_path / "out", Sources()).folder, square, LLAMA_3)


def test_tokenizer_of_the_official_layout_has_the_rules_of_its_file(official, tmp_path):
    """xtuner trains with them; of a config of LLaVA's type transformers 5 makes Llama's tokenizer, with rules of its own."""
    _, path = official(model_type="llava_llama")
    check_rules(path, tmp_path / "out")


def test_tokenizer_of_the_own_layout_has_the_rules_of_its_file(parts, save, tmp_path):
    tiny = parts()
    path = tmp_path / "xtuner"
    save(dict(tiny.language.state_dict()), path, tiny.language.config.to_dict(), tiny.tokenizer)
    save_projector(tiny, save, path)
    tiny.vision.save_pretrained(str(path / "visual_encoder"))
    check_rules(path, tmp_path / "out")


def check_rules(path, out):
    """Give the checkpoint Vicuna's tokenizer, and compare ids of the imported one with those by its `tokenizer.json`."""
    for file in VICUNA.iterdir():
        shutil.copy(file, path)
    settings = json.loads((VICUNA / "tokenizer_config.json").read_text(encoding="utf-8")) | {"legacy": False}
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    folder = import_xtuner(path, out, Sources(template="vicuna-v1")).folder
    tokenizer = vlm.load(folder, device="cpu", precision="fp32").language.tokenizer
    text = " A chat</s>USER: is 日本?</s>ASSISTANT"
    assert tokenizer(text).input_ids == Tokenizer.from_file(str(VICUNA / "tokenizer.json")).encode(text).ids


def test_transformers_layout(parts, save, ours, square, tmp_path):
    tiny = parts()
    names = {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
    weights = {}
    for name, tensor in tiny.language.state_dict().items():
        start = next(start for start in names if name.startswith(start))
        weights[names[start] + name.removeprefix(start)] = tensor
    weights |= {f"vision_tower.vision_model.{name}": tensor for name, tensor in tiny.vision.state_dict().items()}
    weights |= {f"multi_modal_projector.linear_{1 + int(name[0]) // 2}{name[1:]}": tensor for name, tensor in tiny.projector.state_dict().items()}
    values = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 384}
    values |= {"text_config": tiny.language.config.to_dict(), "vision_config": tiny.vision.config.to_dict()}
    path = save(weights, tmp_path / "hf", values, tiny.tokenizer)
    compare(tiny, ours, import_xtuner(path, tmp_path / "out", Sources()).folder, square, LLAMA_3)


def test_other_folders_and_tokenizers_are_refused(parts, save, tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        import_xtuner(tmp_path, tmp_path / "out", Sources())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="it is no LLaVA of xtuner"):
        import_xtuner(tmp_path, tmp_path / "out", Sources())
    tiny = parts()
    save_base(tiny, tmp_path)
    path = tmp_path / "xtuner"
    save_projector(tiny, save, path)
    words = tmp_path / "words"
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "</s>": 1}, [])), eos_token="</s>").save_pretrained(str(words))
    with pytest.raises(ConfigError, match="neither Llama 3 nor Phi-3"):
        import_xtuner(path, tmp_path / "out", Sources(vision=str(tmp_path / "tower"), language=str(tmp_path / "base"), tokenizer=str(words)))
    assert not list(tmp_path.glob("out*"))
