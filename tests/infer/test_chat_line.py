"""Lines as terminals paste them when a file is dragged in, and as people write them."""

from pathlib import Path

import pytest

from vlm.data.remote import local_path
from vlm.infer.chat_line import Line, names_in, read_line


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("cat.png", "a cat.JPG", "it's.png", "back\\slash.png", "notes.txt", "katze-ü.png", "no-suffix"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("DIR/cat.png", "DIR/cat.png"),
        ("DIR/cat.png ", "DIR/cat.png"),  # macOS appends a space
        ("'DIR/a cat.JPG'", "DIR/a cat.JPG"),  # GNOME
        ('"DIR/a cat.JPG"', "DIR/a cat.JPG"),  # Windows
        ("DIR/a\\ cat.JPG", "DIR/a cat.JPG"),  # macOS
        ("file://DIR/a%20cat.JPG", "file://DIR/a%20cat.JPG"),  # Konsole
        ("file://localhostDIR/cat.png", "file://localhostDIR/cat.png"),
        ("'DIR/it'\\''s.png'", "DIR/it's.png"),
        ("DIR/it\\'s.png", "DIR/it's.png"),
        ("DIR/katze-ü.png", "DIR/katze-ü.png"),
        ("back\\slash.png", "back\\slash.png"),  # the name as it stands comes first
        ("cat.png", "cat.png"),
        ("~/cat.png", "~/cat.png"),
    ],
)
def test_a_pasted_path_is_a_picture_and_no_question(files, line, name):
    line, name = line.replace("DIR", str(files)), name.replace("DIR", str(files))
    assert read_line(line) == Line("", (name,))
    assert local_path(name).is_file()
    assert read_line(f"{line} what is this?") == Line("what is this?", (name,))
    assert read_line(f"what is this? {line}") == Line("what is this?", (name,))


def test_several_pictures_may_be_dragged_in_at_once(files):
    assert read_line("cat.png 'a cat.JPG' which is larger? ~/cat.png") == Line("which is larger?", ("cat.png", "a cat.JPG", "~/cat.png"))
    assert read_line("cat.png 'a cat.JPG'") == Line("", ("cat.png", "a cat.JPG"))


def test_pictures_between_words_keep_their_places(files):
    assert read_line("is cat.png or 'a cat.JPG' larger?") == Line("is <image> or <image> larger?", placed=("cat.png", "a cat.JPG"))
    assert read_line("cat.png  what is in ./cat.png,  and 'a cat.JPG'?") == Line(
        "what is in <image>,  and <image>?", ("cat.png",), ("./cat.png", "a cat.JPG")
    )


@pytest.mark.parametrize(
    "line",
    [
        "what color is the cat?",
        "what's in the 'red' box, isn't it \"big\"?",
        "read notes.txt and no-suffix",  # no pictures by their names
        "is a .png or a dog.png better?",  # there is no such file, and no path either
        "and/or?",
        "is <image> red?",
        "see https://example.com/page for more",
        "'",
        "what is 'this",
    ],
)
def test_a_question_stays_as_it_is(files, line):
    assert read_line(line) == Line(line)


def test_a_path_that_is_missing_is_a_picture_all_the_same_so_that_it_is_noticed():
    assert read_line("/nowhere/a\\ cat.png what is this?") == Line("what is this?", ("/nowhere/a cat.png",))
    assert read_line(f"/{'a' * 300}.png") == Line("", (f"/{'a' * 300}.png",))
    assert read_line("~nobody-here/cat.png") == Line("", ("~nobody-here/cat.png",))


@pytest.mark.parametrize("url", ["https://example.com/a/cat.jpg", "http://example.com/cat.png?size=2#top", "HTTPS://example.com/CAT.PNG"])
def test_urls_of_pictures_are_pictures(url):
    assert read_line(url) == Line("", (url,))
    assert read_line(f"what does {url} show?") == Line("what does <image> show?", placed=(url,))


def test_any_url_alone_is_a_picture():
    assert read_line("https://example.com/42") == Line("", ("https://example.com/42",))


def test_every_word_of_an_image_command_is_a_name(files):
    assert names_in(" no-suffix 'a cat.JPG' a\\ cat.JPG https://example.com/42 missing") == [
        "no-suffix",
        "a cat.JPG",
        "a cat.JPG",
        "https://example.com/42",
        "missing",
    ]
