"""What one client may ask for, and how much the server holds at a time. Knows no web framework and no torch."""

from dataclasses import dataclass, fields

from vlm.errors import ConfigError

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; each is at least 1.

    Attributes:
        max_body_bytes: Largest request, its pictures as base64 included.
        max_held_bytes: Bytes of all requests that are being received or prepared; what comes beyond is told to come again.
        max_pictures: Pictures of a conversation.
        max_pixels: Pixels of all pictures of a conversation together, before they are resized.
        max_prompt_tokens: Tokens of a conversation, those of pictures included; the language model's context holds in any case.
        max_new_tokens: Longest answer that may be asked for, and how long it may be where nothing is said.
        max_batch: Answers generated at a time.
        max_batch_tokens: Places of a batch: rows times the longest prompt and answer. One row alone may have more.
        max_queue: Requests that may wait while a batch is answered.
        timeout: Seconds from a request's first byte to the end of its answer.
    """

    max_body_bytes: int = 20 * MIB
    max_held_bytes: int = 256 * MIB
    max_pictures: int = 8
    max_pixels: int = 50_000_000
    max_prompt_tokens: int = 1_000_000
    max_new_tokens: int = 1024
    max_batch: int = 32
    max_batch_tokens: int = 32_768
    max_queue: int = 256
    timeout: float = 300.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not (value := getattr(self, field.name)) >= 1:  # nan is neither
                raise ConfigError(f"--{field.name.replace('_', '-')} is {value}; it must be at least 1.")
