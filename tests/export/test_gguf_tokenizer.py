"""Tokenizers as GGUF metadata: kinds, types, merges and scores; what llama.cpp does not have is refused."""

import pytest
import transformers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from vlm.errors import ConfigError
from vlm.export.gguf_tokenizer import LLAMA_3_WORDS, TokenType, vocabulary


def byte_level(*steps, added: tuple[str, ...] = ()):
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.add_tokens(list(added))
    return fast


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
NO_REGEX = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern: str):
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


@pytest.mark.parametrize(
    ("steps", "pre"),
    [
        ((BYTES,), "gpt-2"),
        ((pre_tokenizers.Digits(individual_digits=True), BYTES), "smollm"),
        ((split(LLAMA_3_WORDS), NO_REGEX), "llama-bpe"),
        ((split(LLAMA_3_WORDS.replace("{1,3}", "")), NO_REGEX), "qwen2"),
    ],
)
def test_splitter_has_llama_cpps_name(steps, pre):
    assert vocabulary(byte_level(*steps), 4).pre == pre


def test_unknown_splitter_is_refused():
    with pytest.raises(ConfigError, match=r"splits words .* is not known to be among llama.cpp's ways"):
        vocabulary(byte_level(split("[abc]"), NO_REGEX), 4)


def test_tokens_have_kinds_and_rows_without_a_token_are_named():
    seen = vocabulary(byte_level(BYTES, added=("word",)), 6)
    assert seen.tokens == ["a", "b", "ab", "<end>", "word", "[PAD5]"]
    assert [TokenType(kind).name for kind in seen.types] == ["NORMAL", "NORMAL", "NORMAL", "CONTROL", "USER_DEFINED", "UNUSED"]
    assert (seen.model, seen.merges, seen.scores) == ("gpt2", ["a b"], [])


def test_sentencepiece_gets_scores_by_the_order_of_its_merges():
    words = {"<unk>": 0, "<0x41>": 1, "▁": 2, "a": 3, "b": 4, "ab": 5, "▁a": 6}
    bpe = Tokenizer(models.BPE(vocab=words, merges=[("a", "b"), ("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    seen = vocabulary(transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>"), 7)
    assert (seen.model, seen.space_prefix, seen.merges) == ("llama", True, [])
    assert [TokenType(kind).name for kind in seen.types[:2]] == ["UNKNOWN", "BYTE"]
    assert seen.scores[5] > seen.scores[6] > seen.scores[3]


def test_other_kinds_are_refused():
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")))
    with pytest.raises(ConfigError, match=r"of type WordPiece, and llama.cpp's language models have BPE"):
        vocabulary(fast, 2)
