"""Text of single tokens, as bytes; their probabilities are tested in test_answer_rows.py."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from vlm.backbones.language.tiny import SPECS
from vlm.models.token_scores import TokenText


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama 2's way: no space at the beginning, bytes for what is unknown; among its tokens one that stands for another byte in GPT-2's."""
    words = ["<unk>", "</s>", "▁Yes", "▁a", "a", "Ã", "\ufffd", *(f"<0x{byte:02X}>" for byte in "猫".encode())]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("text", ["Yes, a b\n a\n  b", " é猫, 猫\ufffd", "a<|im_end|></s>", "Ã…"])
def test_bytes_of_tokens_join_to_the_text_in_gpt_2s_way(text):
    tokenizer = SPECS["tiny-llama"].tokenizer(SPECS["tiny-llama"], None)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert b"".join(map(TokenText(tokenizer).utf8, ids)) == text.encode()


def test_bytes_of_tokens_in_sentencepieces_way():
    tokenizer = sentencepiece()
    utf8 = TokenText(tokenizer).utf8
    words = ["▁Yes", "▁a", "Ã", "\ufffd", "<0xE7>", "<0x8C>", "<0xAB>", "</s>"]
    assert b"".join(map(utf8, tokenizer.convert_tokens_to_ids(words))) == " Yes aÃ\ufffd猫</s>".encode()
    assert [utf8(tokenizer.convert_tokens_to_ids(word)) for word in words[4:6]] == [b"\xe7", b"\x8c"]


def test_what_the_vocabulary_lacks_has_no_text():
    tokenizer = sentencepiece()
    assert TokenText(tokenizer).utf8(len(tokenizer) + 5) == b""
