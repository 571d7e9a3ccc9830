"""Two small tokenizers of the two kinds that matter, trained in the test, and a cache folder of its own for every test."""

from pathlib import Path

import pytest
from PIL import Image

from vlm.messages import IMAGE_PLACEHOLDER

CORPUS = [
    "A chat between a curious user and an assistant.",
    "USER: what color is the shape? ASSISTANT: a blue circle, naïve café 日本語",
    "In: describe the image.\nOut: a red triangle\n\n  indented  text",
]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "cache"))


def byte_level():
    """GPT-2's kind: bytes, spaces trimmed from offsets (as in Phi, Qwen, SmolLM)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False))
    return tokenizer


def metaspace():
    """Llama 2's kind: a dummy space before the text and after special tokens, bytes for unknown characters."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", *SPECIAL, *(f"<0x{i:02X}>" for i in range(256))]
    ascii_corpus = [text.split(" na")[0].replace(" ", "▁") for text in CORPUS for _ in range(3)]
    # pieces of single words, as sentencepiece makes them
    words = ["▁" + word for text in ascii_corpus for word in text.split("▁")]
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=450, special_tokens=special, show_progress=False))
    return tokenizer


@pytest.fixture(scope="session", params=[byte_level, metaspace], ids=["byte_level", "metaspace"])
def tokenizer(request: pytest.FixtureRequest):
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=request.param(), bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": [IMAGE_PLACEHOLDER]})
    return made


@pytest.fixture
def bare_tokenizer():
    """The byte-level one, without `<image>`."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=byte_level())


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").resize((20, 10)).convert("RGB").save(path)
    return path
