"""How a transformer without a vector of its own reads a text: what is written around it, where long ones are cut, which tokens count. Knows no model.

The rules are those of LLM2Vec (BehnamGhader et al. 2024, arXiv:2404.05961; `llm2vec/llm2vec.py`), of which sentence encoders are the simple case.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vlm.errors import ConfigError

BARE = "{text}"
POOLINGS = ("mean", "weighted_mean", "eos_token", "last_token", "bos_token")


class Written(NamedTuple):
    """What a text became, in two pieces that are tokenized as one string.

    Attributes:
        head: What stands before the text: the start of the template and the instruction.
        tail: The text and all behind it; its tokens are the ones that count where the instruction is skipped.
    """

    head: str
    tail: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How texts are read; all of it changes the vectors.

    Attributes:
        pooling: `mean` of the tokens that count; `weighted_mean` of them with weights 1, 2, 3, ...; `eos_token` or `last_token`, the last token;
            `bos_token`, the first one (BERT's CLS).
        template: What is written around instruction and text, which stand where `{text}` is: "[INST] {text} [/INST]".
        end: What pooling `eos_token` appends, after the template. `last_token` pools the same place and appends nothing.
        instruction: What stands before texts that come without instruction.
        skip_instruction: Of instruction and template only what stands behind the text counts in a mean; all tokens are seen at any rate.
        doc_max_length: Tokens from which on a text loses whole words at its end, before it is written into the template; None to cut at the model's
            maximum alone.
        padding_side: "left" as in LLM2Vec, or "right", which models with absolute positions need.
        bidirectional: Tokens of a decoder see later tokens; encoders are so at any rate.
    """

    pooling: str = "mean"
    template: str = BARE
    end: str = ""
    instruction: str = ""
    skip_instruction: bool = False
    doc_max_length: int | None = None
    padding_side: str = "right"
    bidirectional: bool = True

    def __post_init__(self) -> None:
        """Refuse what would be found out only at the first text.

        Raises:
            ConfigError: If the pooling or side is unknown, or the template has no place for the text.
        """
        if self.pooling not in POOLINGS:
            raise ConfigError(f"Unknown pooling {self.pooling!r}; known are {', '.join(POOLINGS)}.")
        if self.padding_side not in ("left", "right"):
            raise ConfigError(f"Texts are padded on the 'left' or the 'right', got {self.padding_side!r}.")
        if self.template.count(BARE) != 1:
            raise ConfigError(f"A prompt template contains {BARE} once, got {self.template!r}.")

    def write(self, text: str, instruction: str) -> Written:
        """A text as the tokenizer gets it.

        White space at the end of the text goes where something is written behind it, as in LLM2Vec. Its separator of instruction and text is not
        needed here, so a text may contain it.
        """
        instruction = instruction or self.instruction
        head, tail = (f"{instruction.strip()} " if instruction else ""), text
        if self.template != BARE:
            before, behind = self.template.split(BARE)
            head, tail = before + head.lstrip(), tail.rstrip() + behind
        if self.pooling == "eos_token" and self.end:
            head, tail = head.lstrip(), tail.rstrip() + self.end
        return Written(head, tail)


def cut(texts: Sequence[str], tokenizer: Any, *, max_length: int, doc_max_length: int | None) -> list[str]:
    """The texts, those of more than `doc_max_length` tokens without their last words; such a text's white space becomes single spaces."""
    if doc_max_length is None:
        return list(texts)
    lengths = count_tokens(texts, tokenizer, max_length=max_length)
    return [_cut(text, tokenizer, length, max_length, doc_max_length) for text, length in zip(texts, lengths, strict=True)]


def _cut(text: str, tokenizer: Any, length: int, max_length: int, doc_max_length: int) -> str:
    while length > doc_max_length:
        words = text.split()
        text = " ".join(words[: int(len(words) * (doc_max_length / length))])
        (length,) = count_tokens([text], tokenizer, max_length=max_length)
    return text


def count_tokens(texts: Sequence[str], tokenizer: Any, *, max_length: int) -> list[int]:
    """Tokens of each text by itself, without special tokens, at most `max_length`."""
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=max_length).input_ids]
