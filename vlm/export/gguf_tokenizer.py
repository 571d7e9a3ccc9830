"""A tokenizer as the metadata of a GGUF file: tokens, types, merges or scores, and the name of how llama.cpp splits words. Writes nothing itself.

llama.cpp (src/llama-vocab.cpp) has its own code for each pre-tokenizer; one that it is not known to have is refused.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from vlm.errors import ConfigError

# llama.cpp's name for what the tokenizers of a family split by, from the `tokenizer.json` of GPT-2 and Phi-2, SmolLM2, Llama 3, Qwen2 and Qwen3.
LLAMA_3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITTERS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (LLAMA_3_WORDS, "bytes"): "llama-bpe",
    (LLAMA_3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}"), "bytes"): "qwen2",
}
REMEDY = "Export with `vlm export hf` and use llama.cpp's own convert_hf_to_gguf.py."


class TokenType(IntEnum):
    """gguf's, which is imported only where it is needed."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        model: `gpt2` for byte-level BPE, `llama` for SentencePiece's BPE.
        pre: How words are split before merging.
        tokens: Text of each id, as many as the embedding table has rows.
        types: Their kinds.
        merges: Of byte-level BPE, pairs from the first to the last.
        scores: Of SentencePiece's, what is merged first: minus the rank of the merge.
        space_prefix: True if a text gets a space in front.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    space_prefix: bool


def vocabulary(tokenizer: Any, rows: int) -> Vocabulary:
    """The metadata of a fast tokenizer.

    Args:
        tokenizer: Of transformers.
        rows: Rows of the embedding table; tokens beyond are left out, rows without a token are named.

    Raises:
        ConfigError: If llama.cpp has no tokenizer of that kind.
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    model = whole["model"]
    if model["type"] != "BPE":
        raise ConfigError(f"The tokenizer is of type {model['type']}, and llama.cpp's language models have BPE. {REMEDY}")
    named = {i: token for token, i in tokenizer.get_vocab().items()}
    tokens = [named.get(i, f"[PAD{i}]") for i in range(rows)]
    added = tokenizer.added_tokens_decoder
    types = [int(_type(i, token, named, added, model)) for i, token in enumerate(tokens)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        return Vocabulary("llama", "default", tokens, types, [], _scores(tokens, merges), _prefixes(whole))
    return Vocabulary("gpt2", _splitter(whole["pre_tokenizer"]), tokens, types, merges, [], False)


def _type(i: int, token: str, named: dict[int, str], added: dict[int, Any], model: dict[str, Any]) -> TokenType:
    if i not in named:
        return TokenType.UNUSED
    if token == model.get("unk_token"):
        return TokenType.UNKNOWN
    if i in added:
        return TokenType.CONTROL if added[i].special else TokenType.USER_DEFINED
    is_byte = bool(model.get("byte_fallback")) and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """SentencePiece merges what scores highest: the order of the merges, from 0 downwards."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _prefixes(whole: dict[str, Any]) -> bool:
    normalizers = (whole.get("normalizer") or {}).get("normalizers", [whole.get("normalizer") or {}])
    pre = whole.get("pre_tokenizer") or {}
    return any(step.get("type") == "Prepend" for step in normalizers) or pre.get("prepend_scheme") in ("always", "first")


def _splitter(pre_tokenizer: dict[str, Any] | None) -> str:
    steps = (pre_tokenizer or {}).get("pretokenizers") or ([pre_tokenizer] if pre_tokenizer else [])
    key = tuple(_step(step) for step in steps)
    if key not in SPLITTERS:
        raise ConfigError(f"How this tokenizer splits words ({', '.join(key) or 'not at all'}) is not known to be among llama.cpp's ways. {REMEDY}")
    return SPLITTERS[key]


def _step(step: dict[str, Any]) -> str:
    if step["type"] == "Split":
        return str(step["pattern"].get("Regex", step["pattern"]))
    if step["type"] == "ByteLevel":
        return "ByteLevel" if step.get("use_regex", True) else "bytes"
    return str(step["type"])
