"""What a model gets from samples, for human eyes: tiles beside pictures, text colored by what the loss sees; as one HTML page or for the terminal.

Knows a chat template, a tokenizer and an image policy as values; neither a model nor where samples come from.
"""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vlm.data.chat import Encoded, encode_chat
from vlm.data.image import load_image, load_tiles
from vlm.data.sample import Sample
from vlm.errors import DataFormatError
from vlm.messages import ChatTemplate, Message, count_placeholders
from vlm.types import IGNORE_INDEX, ImageLayout, ImagePolicy

SHOWN_SIDE = 640  # pixels of a picture's long side on the page; tiles are shown whole
SHARP_SIDE = 256  # pictures up to this side are stored without loss, because their pixels are seen one by one
STYLES = {"trained": "bold green", "special": "magenta", "image": "bold blue", "plain": "dim"}


@dataclass(frozen=True)
class Encoder:
    """How samples become tokens and tiles: what a loader gets, without the data.

    Attributes:
        template: Chat template, fitted to the tokenizer.
        tokenizer: Fast tokenizer with an `<image>` token.
        image_token_id: Id of that token.
        policy: How pictures become tiles.
        tokens_per_image: Image tokens of a picture, from its layout.
        max_length: Longest conversation in tokens, image tokens included.
    """

    template: ChatTemplate
    tokenizer: Any
    image_token_id: int
    policy: ImagePolicy
    tokens_per_image: Callable[[ImageLayout], int]
    max_length: int


@dataclass(frozen=True)
class Piece:
    """One token, or all tokens of one picture.

    Attributes:
        text: What it spells; empty for a token that is only the beginning of a character.
        name: The token as the tokenizer's vocabulary spells it.
        position: Place of the first token in the conversation, from 0.
        id: Token id.
        label: What the loss asks for at this place; IGNORE_INDEX for nothing.
        special: True for tokens that no text of the data should make.
        picture: Number of the picture that it stands for, from 1; 0 for text.
        num_tokens: Tokens that it stands for.
    """

    text: str
    name: str
    position: int
    id: int
    label: int
    special: bool = False
    picture: int = 0
    num_tokens: int = 1

    @property
    def trained(self) -> bool:
        """True where the loss looks."""
        return self.label != IGNORE_INDEX

    @property
    def kind(self) -> str:
        """image, trained or plain: who owns the tokens."""
        return "image" if self.picture else "trained" if self.trained else "plain"


@dataclass(frozen=True)
class Picture:
    """A picture and what the model sees of it."""

    path: Path
    original: Image.Image
    tiles: UInt8[Tensor, "N 3 H W"]
    layout: ImageLayout
    num_tokens: int


@dataclass(frozen=True)
class Card:
    """One sample as it is shown.

    Attributes:
        id: Name of the sample.
        pictures: Its pictures.
        pieces: Its tokens in order.
        notes: What was left out to make it fit.
        warnings: What is probably wrong with it.
    """

    id: str
    pictures: tuple[Picture, ...] = ()
    pieces: tuple[Piece, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens, those of pictures included."""
        return sum(piece.num_tokens for piece in self.pieces)

    @property
    def num_labels(self) -> int:
        """Tokens that the loss sees."""
        return sum(piece.trained for piece in self.pieces)

    @property
    def counts(self) -> str:
        """Tokens, labelled tokens and pictures, in words."""
        return totals([self])

    def runs(self) -> list[tuple[str, int]]:
        """Stretches of tokens of one kind, with their lengths in tokens: a map of the sample."""
        runs: list[tuple[str, int]] = []
        for piece in self.pieces:
            before = runs.pop()[1] if runs and runs[-1][0] == piece.kind else 0
            runs.append((piece.kind, before + piece.num_tokens))
        return runs


def look(sample: Sample, encoder: Encoder) -> Card:
    """A sample as the loader would encode it; one that it would refuse becomes a card that says why.

    Raises:
        ConfigError: If template and tokenizer do not fit.
    """
    try:
        pictures = [_picture(path, encoder) for path in sample.images]
        encoded = _encode(sample.messages, encoder, pictures, max_length=encoder.max_length)
    except DataFormatError as error:
        return Card(sample.id, warnings=(f"cannot be used: {error}",))
    kept = tuple(pictures[: encoded.num_images])
    pieces = tuple(_pieces(encoded, encoder, kept))
    return Card(sample.id, kept, pieces, notes=tuple(_left_out(encoded, encoder)), warnings=tuple(_doubts(sample, encoder, encoded, pictures)))


def _picture(path: Path, encoder: Encoder) -> Picture:
    tiles, layout = load_tiles(path, encoder.policy)
    return Picture(path, load_image(path), tiles, layout, encoder.tokens_per_image(layout))


def _encode(messages: Sequence[Message], encoder: Encoder, pictures: Sequence[Picture], *, max_length: int | None = None) -> Encoded:
    """The first turns of a conversation, with those of its pictures that they name."""
    return encode_chat(
        messages,
        template=encoder.template,
        tokenizer=encoder.tokenizer,
        image_token_id=encoder.image_token_id,
        tokens_per_image=[picture.num_tokens for picture in pictures[: count_placeholders(messages)]],
        max_length=max_length,
    )


def _left_out(encoded: Encoded, encoder: Encoder) -> Iterator[str]:
    """What is missing, because the conversation is too long."""
    fit = f"to fit into {encoder.max_length:,} tokens"
    if encoded.dropped_turns:
        yield f"{encoded.dropped_turns} turn(s) dropped {fit}"
    if encoded.cut_tokens:
        yield f"{encoded.cut_tokens:,} token(s) cut {fit}"


def _pieces(encoded: Encoded, encoder: Encoder, pictures: Sequence[Picture]) -> Iterator[Piece]:
    from tokenizers.decoders import DecodeStream

    tokenizer = encoder.tokenizer
    ids, labels = encoded.ids.tolist(), _seen_labels(encoded)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} | set(tokenizer.all_special_ids)
    stream = DecodeStream([], skip_special_tokens=False)
    position = number = 0
    while position < len(ids):
        token = ids[position]
        text = stream.step(tokenizer.backend_tokenizer, token) or ""
        piece = Piece(text, tokenizer.convert_ids_to_tokens(token), position, token, labels[position], token in special)
        if token == encoder.image_token_id:
            number += 1
            piece = replace(piece, picture=number, num_tokens=pictures[number - 1].num_tokens)
        yield piece
        position += piece.num_tokens


def _seen_labels(encoded: Encoded) -> list[int]:
    """Labels as the loss sees them: nothing predicts the first token."""
    return [IGNORE_INDEX, *encoded.labels.tolist()[1:]]


def _doubts(sample: Sample, encoder: Encoder, encoded: Encoded, pictures: Sequence[Picture]) -> Iterator[str]:
    """What is probably wrong with a sample that can be encoded."""
    ids, labels = encoded.ids.tolist(), _seen_labels(encoded)
    if all(label == IGNORE_INDEX for label in labels):
        yield "no token has a label: the loss learns nothing from it"
    bos = encoder.tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        yield f"it begins with two {encoder.tokenizer.bos_token!r}: one by the template, one in the data"
    for turn, message in enumerate(sample.messages):
        if message.role != "assistant":
            continue
        start = len(_encode(sample.messages[:turn], encoder, pictures).ids)
        if start < len(labels) and labels[start] == IGNORE_INDEX:
            yield f"the first token of the answer in turn {turn + 1} has no label: {'it is not trained' if start else 'nothing stands before it'}"


def totals(cards: Sequence[Card]) -> str:
    """Tokens, labelled tokens and pictures of cards, in words."""
    tokens, labels, pictures = (sum(values) for values in zip(*((c.num_tokens, c.num_labels, len(c.pictures)) for c in cards), strict=True))
    share = f" ({labels / tokens:.0%})" if tokens else ""
    return f"{tokens:,} tokens, {labels:,}{share} labelled, {pictures} picture{'' if pictures == 1 else 's'}"


def write_page(path: Path, cards: Sequence[Card], *, title: str, facts: Mapping[str, str]) -> None:
    """Write one HTML file that needs no other.

    Args:
        path: The file; its folder is made if it is missing.
        cards: Samples in order.
        title: Heading.
        facts: What the samples were made with, label by label.
    """
    import jinja2

    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    text = page.render(cards=cards, title=title, facts=facts, totals=totals(cards), picture_url=_picture_url, tile_url=_tile_url)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(path.name + ".tmp")
    building.write_text(text, encoding="utf-8")
    building.rename(path)


def _picture_url(image: Image.Image) -> str:
    shown = image.copy()
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return _data_url(shown, "PNG" if max(shown.size) <= SHARP_SIDE else "JPEG")


def _tile_url(tile: UInt8[Tensor, "3 H W"]) -> str:
    """The very pixels that the model gets, without loss."""
    return _data_url(Image.fromarray(tile.permute(1, 2, 0).numpy()), "PNG")


def _data_url(image: Image.Image, kind: str) -> str:
    out = io.BytesIO()
    image.save(out, format=kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def for_terminal(card: Card) -> Any:
    """A card as rich prints it: trained tokens bold green, others dim, special tokens magenta, pictures as one blue word."""
    from rich.text import Text

    text = Text.assemble((card.id, "bold underline"), f"  {card.counts}\n")
    for picture, number in zip(card.pictures, range(1, len(card.pictures) + 1), strict=True):
        height, width = picture.layout.size
        text.append(f"image {number}: {picture.path}, {width}x{height}, {picture.num_tokens:,} tokens\n", "blue")
    for piece in card.pieces:
        if piece.picture:
            text.append(f"[image {piece.picture}: {piece.num_tokens:,} tokens]", STYLES["image"])
        else:
            text.append(piece.text, " ".join([STYLES[piece.kind], *([STYLES["special"]] if piece.special else [])]))
    for line in (*card.notes, *(f"warning: {warning}" for warning in card.warnings)):
        text.append(f"\n{line}", "yellow")
    return text.append("\n")
