"""Text of tokens as they come, against the text of all tokens at once."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from vlm.backbones.language.tiny import SPECS
from vlm.models.answer_text import EndsWithStop, cut, decode, pieces_of, until_stop


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama 2's way to decode: spaces as part of the word behind them, bytes for what is unknown, and no space at the beginning."""
    words = ["<unk>", "</s>", "▁Yes", ",", "▁a", "▁", "b", "<0x0A>", *(f"<0x{byte:02X}>" for byte in "é猫".encode())]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def byte_level() -> PreTrainedTokenizerFast:
    return SPECS["tiny-llama"].tokenizer(SPECS["tiny-llama"], None)


@pytest.mark.parametrize("text", ["Yes, a b\n a\n  b", "Yes é猫, 猫", "a</s>", ""])
def test_pieces_of_bytes_join_to_the_text_of_all_tokens(text):
    ids = byte_level()(text, add_special_tokens=False).input_ids
    pieces = list(pieces_of(ids, byte_level()))
    assert "".join(pieces) == decode(byte_level(), ids) == text.replace("</s>", "")
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["▁Yes", ",", "▁a", "<0x0A>", "▁a", "<0x0A>", "▁", "▁", "b"], ["Yes", ",", " a", "\n", " a", "\n", " ", " ", "b"]),
        (["▁Yes", "▁", "<0xC3>", "<0xA9>", "<0xE7>", "<0x8C>", "<0xAB>", "</s>"], ["Yes", " ", "é", "猫"]),
    ],
)
def test_pieces_of_sentencepiece_join_to_the_text_of_all_tokens(tokens, expected):
    tokenizer = sentencepiece()
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert list(pieces_of(ids, tokenizer)) == expected
    assert "".join(expected) == decode(tokenizer, ids)


def test_a_character_cut_short_comes_at_the_end():
    tokenizer = sentencepiece()
    ids = tokenizer.convert_tokens_to_ids(["▁Yes", "<0xE7>", "<0x8C>"])
    assert list(pieces_of(ids, tokenizer)) == ["Yes", decode(tokenizer, ids)[3:]]


def test_spaces_before_punctuation_stay():
    tokenizer = byte_level()
    tokenizer.clean_up_tokenization_spaces = True
    assert decode(tokenizer, tokenizer("a . b", add_special_tokens=False).input_ids) == "a . b"


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["ab", "c\n", "\nd"], ["\n\n"], ["ab", "c"]),
        (["ab\n", "c"], ["\n\n"], ["ab", "\nc"]),
        (["a", "\n"], ["\n\n"], ["a", "\n"]),
        (["one two three"], ["three", "two"], ["one "]),
        (["STO", "P"], ["STOP"], []),
        (["aaab"], ["aab"], ["a"]),
        (["aa", "ab"], ["aab"], ["a"]),
        (["x"], [], ["x"]),
    ],
)
def test_pieces_end_before_the_first_stop_string(pieces, stops, expected):
    assert list(until_stop(pieces, stops)) == expected
    assert cut("".join(pieces), stops) == "".join(expected)


def test_nothing_is_taken_from_the_source_behind_a_stop_string():
    source = iter(["a", "STOP", "never"])
    assert list(until_stop(source, ["STOP"])) == ["a"]
    assert list(source) == ["never"]


def test_rows_that_hold_a_stop_string_are_done():
    tokenizer = byte_level()
    texts = ["the blue", "the gray", "blue     "]
    ids = torch.tensor([tokenizer([*text], add_special_tokens=False, is_split_into_words=True).input_ids[-8:] for text in texts])
    assert EndsWithStop(tokenizer, ["blue"])(ids, None).tolist() == ["blue" in decode(tokenizer, row) for row in ids.tolist()]
