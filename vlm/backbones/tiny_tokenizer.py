"""The tokenizer of the tiny models: a byte-level BPE that is trained in code on a few sentences. Knows no model."""

from functools import cache

TEXT = (
    "What color is the circle? The circle is blue. Is there a red square in the image? No, there is a green triangle. Describe the image. "
    "What shape is in the picture? A yellow rectangle. Yes, the shape is black and gray. USER: ASSISTANT: [INST] [/INST] Instruct: Output: "
    "system\nuser\nassistant\nYou are a helpful assistant. A chat between a curious user and an artificial intelligence assistant. "
)


@cache
def byte_level_bpe(special_tokens: tuple[str, ...], *, vocab_size: int, lowercase: bool = False) -> str:
    """The JSON of a byte-level BPE trained on TEXT: no text is unknown to it, and its tokens are the same on every machine.

    Args:
        special_tokens: Tokens of their own, which get the ids from 0.
        vocab_size: Number of tokens, 256 bytes and the special tokens among them.
        lowercase: Write every text in lower case first, as CLIP and SigLIP do.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special_tokens), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer.to_str()
