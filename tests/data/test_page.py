"""The page against what it is made of: the rendered conversation, the labels of `encode_chat`, the pixels of `to_tiles`."""

import base64
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.data.chat import encode_chat
from vlm.data.image import load_tiles
from vlm.data.page import Card, Encoder, for_terminal, look, totals, write_page
from vlm.data.sample import Sample
from vlm.messages import ChatTemplate, Message
from vlm.types import IGNORE_INDEX, ImagePolicy

CHATML = ChatTemplate(
    name="chatml",
    user="<|im_start|>user\n{content}<|im_end|>\n",
    assistant_start="<|im_start|>assistant\n",
    assistant="{content}<|im_end|>",
    between="\n",
)
WITH_BOS = ChatTemplate(name="with-bos", start="<s>", user="{content}\n", assistant_start="Out:", assistant=" {content}</s>")
PLAIN = ChatTemplate(name="plain", user="{images}", assistant_start="", assistant="{content}\n")
POLICY = ImagePolicy(size=8, mode="pad")
TALK = ("<image>\nwhat color is 日本語 <b>&amp;</b>?", "naïve 🙂,\n\n  a blue circle", "and this?", "a red triangle")


def encoder(tokenizer, *, template: ChatTemplate = CHATML, max_length: int = 500) -> Encoder:
    image = tokenizer.convert_tokens_to_ids("<image>")
    return Encoder(template, tokenizer, image, POLICY, lambda layout: layout.num_tiles * 5, max_length)


def sample(*texts: str, images: tuple[Path, ...] = ()) -> Sample:
    return Sample("s-1", images, tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)))


def rendered(shown: Sample, template: ChatTemplate = CHATML) -> str:
    return "".join(span.text for span in template.render(shown.messages))


@pytest.fixture
def talk(picture: Path) -> Sample:
    return sample(*TALK, images=(picture,))


def spelled(card: Card, *, trained: bool | None = None) -> str:
    return "".join(piece.text for piece in card.pieces if trained in (None, piece.trained))


def test_pieces_spell_the_rendered_conversation(tokenizer, talk: Sample):
    seen, wanted = spelled(look(talk, encoder(tokenizer))), rendered(talk)
    # Llama 2's kind puts a dummy space behind special tokens, which its decoder cannot tell from a real one
    assert seen.replace(" ", "") == wanted.replace(" ", "")


def test_trained_pieces_spell_the_answers_with_their_ends(tokenizer, talk: Sample):
    answers = "".join(f"{answer}<|im_end|>" for answer in TALK[1::2])
    assert spelled(look(talk, encoder(tokenizer)), trained=True).replace(" ", "") == answers.replace(" ", "")


def test_every_token_has_its_id_label_and_position_and_pictures_are_one_piece(tokenizer, talk: Sample):
    setup = encoder(tokenizer)
    encoded = encode_chat(talk.messages, template=CHATML, tokenizer=tokenizer, image_token_id=setup.image_token_id, tokens_per_image=[5])
    card = look(talk, setup)
    assert [piece.num_tokens for piece in card.pieces if piece.picture] == [5]
    ids = [token for piece in card.pieces for token in [piece.id] * piece.num_tokens]
    labels = [label for piece in card.pieces for label in [piece.label] * piece.num_tokens]
    assert (ids, labels) == (encoded.ids.tolist(), encoded.labels.tolist())
    assert all(ids[piece.position] == piece.id for piece in card.pieces)
    assert card.num_tokens == len(encoded.ids) == sum(length for _, length in card.runs())
    assert card.num_labels == int((encoded.labels != IGNORE_INDEX).sum())


def test_special_tokens_are_marked_and_words_are_not(tokenizer, talk: Sample):
    pieces = look(talk, encoder(tokenizer)).pieces
    assert {piece.special for piece in pieces if piece.text in ("<|im_start|>", "<|im_end|>")} == {True}
    assert {piece.special for piece in pieces if piece.text.strip() in ("what", "color", "shape", "circle", "triangle", "a", "red")} == {False}


def test_sample_without_fault_has_no_warning(tokenizer, talk: Sample):
    assert look(talk, encoder(tokenizer)).warnings == ()


def test_missing_picture_becomes_a_card_that_says_so(tokenizer):
    card = look(sample("<image>what?", "a", images=(Path("/nowhere.png"),)), encoder(tokenizer))
    assert card.warnings == ("cannot be used: There is no image file /nowhere.png.",)
    assert totals([card]) == "0 tokens, 0 labelled, 0 pictures"


def test_conversation_without_an_answer_has_no_label(tokenizer):
    (warning,) = look(sample("what?"), encoder(tokenizer)).warnings
    assert "no token has a label" in warning


def test_second_bos_is_named(tokenizer):
    assert look(sample("what?", "a"), encoder(tokenizer, template=WITH_BOS)).warnings == ()
    (warning,) = look(sample("<s>what?", "a"), encoder(tokenizer, template=WITH_BOS)).warnings
    assert "two '<s>'" in warning


def test_answer_that_nothing_predicts_is_named_and_not_counted(tokenizer):
    card = look(sample("dropped by the template", "blue"), encoder(tokenizer, template=PLAIN))
    assert card.warnings == ("the first token of the answer in turn 2 has no label: nothing stands before it",)
    assert card.num_labels == card.num_tokens - 1


def test_totals_are_sums(tokenizer, talk: Sample, picture: Path):
    cards = [look(talk, encoder(tokenizer)), look(sample("<image><image>", "a", images=(picture, picture)), encoder(tokenizer))]
    tokens, labels = sum(card.num_tokens for card in cards), sum(card.num_labels for card in cards)
    assert totals(cards) == f"{tokens} tokens, {labels} ({labels / tokens:.0%}) labelled, 3 pictures"


class Read(HTMLParser):
    """What a browser would show: the text inside the token spans, attributes of all elements."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tokens = ""
        self._open: list[bool] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "span":
            self._open.append("data-at" in dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if any(self._open):
            self.tokens += data

    def images(self) -> Iterator[Image.Image]:
        for tag, attributes in self.tags:
            if tag == "img":
                yield Image.open(io.BytesIO(base64.b64decode((attributes["src"] or "").split(",")[1])))


@pytest.fixture
def page(tmp_path: Path, tokenizer, talk: Sample) -> Read:
    path = tmp_path / "new" / "page.html"
    write_page(path, [look(talk, encoder(tokenizer))], title="<t>", facts={"dataset": "a & b"})
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
    return Read(path.read_text(encoding="utf-8"))


def test_page_shows_the_conversation_with_line_breaks_marked(page: Read, talk: Sample):
    wanted = rendered(talk).replace("<image>", "[image 1: 5 tokens]").replace("\n", "↵\n")
    assert page.tokens.replace("·", "").replace(" ", "") == wanted.replace(" ", "")


def test_page_holds_the_original_and_the_very_pixels_of_the_tile(page: Read, picture: Path):
    original, tile = page.images()
    assert original.size == (20, 10)
    tiles, _ = load_tiles(picture, POLICY)
    assert np.array_equal(np.asarray(tile), tiles[0].permute(1, 2, 0).numpy())


def test_page_needs_no_other_file(page: Read):
    sources = [value or "" for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert [source for source in sources if not source.startswith("data:image/")] == []
    assert "link" not in [tag for tag, _ in page.tags]


def test_tokens_on_the_page_say_id_position_and_label(page: Read, tokenizer, talk: Sample):
    spans = [attributes for tag, attributes in page.tags if tag == "span" and "data-at" in attributes]
    pieces = look(talk, encoder(tokenizer)).pieces
    assert [(span["data-at"], span["data-id"]) for span in spans] == [(str(piece.position), str(piece.id)) for piece in pieces]
    assert [span.get("data-label") for span in spans] == [str(piece.label) if piece.trained else None for piece in pieces]


def test_large_pictures_are_stored_small(tmp_path: Path, tokenizer):
    Image.effect_noise((2000, 1000), 90).convert("RGB").save(tmp_path / "large.jpg")
    write_page(tmp_path / "page.html", [look(sample("<image>", "a", images=(tmp_path / "large.jpg",)), encoder(tokenizer))], title="", facts={})
    original, _ = Read((tmp_path / "page.html").read_text(encoding="utf-8")).images()
    assert original.size == (640, 320)


def test_terminal_text_colors_what_the_loss_sees(tokenizer, talk: Sample):
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=400, highlight=False, color_system="standard")
    console.print(for_terminal(look(talk, encoder(tokenizer))))
    written = console.file.getvalue()
    trained = "".join(re.findall(r"\x1b\[1;3[25]m(.*?)\x1b\[0m", written))
    assert "[image 1: 5 tokens]" in written
    assert "red triangle<|im_end|>" in trained and "and this?" not in trained
