"""Tiny pairs of an image and a text encoder for tests: two-tower folders of transformers with weights large enough for mistakes to be seen, and heads between them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vlm.backbones.image import IMAGE
from vlm.backbones.text import TEXT
from vlm.conf.contrastive import DualEncoderConfig, HeadConfig
from vlm.connectors.base import Standardize
from vlm.models.dual_build import build_encoder, build_heads
from vlm.models.dual_encoder import DualEncoder

TEXTS = ["a red square", "Something blue!", "the quick brown fox jumps over the lazy dog, " * 4]
CLASSES = {"clip": ("CLIPModel", "CLIPConfig"), "siglip": ("SiglipModel", "SiglipConfig")}
END = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def pictures(count: int = 3) -> list[Image.Image]:
    """Pictures of noise in different colors and sizes, the same at each call."""
    random = np.random.default_rng(0)
    lows = random.integers(0, 200, (count, 3))
    return [Image.fromarray(random.integers(low, low + 50, (36, 40 + 9 * i, 3), dtype=np.uint8)) for i, low in enumerate(lows)]


def two_towers(kind: str, folder: Path, *, seed: int = 1, **text: Any) -> Path:
    """A folder with transformers' model of `tiny-<kind>-image` and `tiny-<kind>-text`, and its tokenizer."""
    import transformers

    image_spec, text_spec = IMAGE[f"tiny-{kind}-image"], TEXT[f"tiny-{kind}-text"]
    model_class, config_class = (getattr(transformers, name) for name in CLASSES[kind])
    sizes = {"vision_config": dict(image_spec.architecture), "text_config": END | dict(text_spec.architecture) | text}
    model = model_class(config_class(**sizes, **({"projection_dim": 8} if kind == "clip" else {})))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            size = 0.1 if name.startswith("logit") else 2.0 if "token_embedding" in name else 0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * size)
        model.logit_scale += 2.0
    model.save_pretrained(folder)
    text_spec.tokenizer(text_spec, None).save_pretrained(folder)
    return folder


def dual(
    kind: str,
    folder: Path,
    *,
    image_head: HeadConfig | None = None,
    text_head: HeadConfig | None = None,
    joint_width: int | None = None,
    **others: Any,
) -> DualEncoder:
    """Heads of random weights, biases and statistics between the two towers of a folder."""
    heads = {"image_head": image_head or HeadConfig(), "text_head": text_head or HeadConfig("linear")}
    names = {"image": f"tiny-{kind}-image", "text": f"tiny-{kind}-text", "image_source": str(folder), "text_source": str(folder)}
    return joined(DualEncoderConfig(**(names | heads | {"joint_width": joint_width} | others)))


def joined(config: DualEncoderConfig) -> DualEncoder:
    """The dual encoder of a config, with random heads that look trained."""
    heads = build_heads(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in heads.modules():
            if isinstance(module, torch.nn.Linear) and module.bias is not None:
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.3)
            if isinstance(module, Standardize):
                module.mean.copy_(torch.randn(module.mean.shape, generator=generator))
                module.scale.copy_(torch.rand(module.scale.shape, generator=generator) + 0.5)
        heads.scale.log_scale.fill_(2.5)
    encoders = [build_encoder(side, getattr(config, side), getattr(config, f"{side}_source")) for side in ("image", "text")]
    return DualEncoder(*encoders, heads, config=replace(config), trained_on=("pairs.json",)).eval()


def bert_folder(folder: Path) -> Path:
    """A folder with a tiny BERT of width 32 and its tokenizer, as a sentence encoder with mean pooling and at most 16 tokens."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["<pad>", "<unk>", "<s>", "</s>"]
    letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz" for prefix in ("", "##")]
    vocabulary = {word: i for i, word in enumerate([*special, "a", "the", "red", "blue", "cat", *letters[2:], "##a", ".", "!"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    ends = [("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
    config = transformers.AutoConfig.for_model("bert", **sizes, vocab_size=len(vocabulary), max_position_embeddings=34)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}', encoding="utf-8")
    return folder


def llm2clip_pair(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`tiny-llm2clip`, a published pair in LLM2CLIP's layout: a CLIP tower and an adapter in one file, a language model in a folder."""
    import transformers

    from vlm.backbones.image.llm2clip import llm2clip
    from vlm.backbones.text.llm2clip import ResidualAdapter

    folder.mkdir()
    spec = replace(IMAGE["tiny-clip-image"], build=llm2clip, width=24, source=str(folder))
    config = transformers.CLIPVisionConfig(**spec.architecture, hidden_act="quick_gelu", projection_dim=24)
    adapter = ResidualAdapter(64, 24, hidden=32, num_blocks=2, bias=True, normalize=True)
    others = {f"text_adapter.{name}": tensor for name, tensor in adapter.state_dict().items()} | {"logit_scale": torch.tensor(3.0)}
    save_file(transformers.CLIPVisionModelWithProjection(config).state_dict() | others, folder / "model.safetensors")
    language = Path(__file__).parent / "data" / "llm2vec_golden" / "base"
    for registry, name, entry in ((IMAGE, "tiny-llm2clip-image", spec), (TEXT, "tiny-llm2clip-text", TEXT[f"llm2clip:{folder}+{language}"])):
        monkeypatch.setitem(registry._tables[0], name, entry)
        monkeypatch.setitem(registry._tables[1], name, name)
    return "tiny-llm2clip"
