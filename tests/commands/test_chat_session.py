"""A session line by line, on a random model: what is said, what is remembered, what is shown."""

import builtins
import io
import signal
import threading
import time

import pytest
from archive_server import ArchiveServer, running_server  # noqa: F401  the fixture archive_server
from PIL import Image

from vlm.commands.chat_session import HELP, Session, input_history, lines, show
from vlm.conf.schema import VisionLanguageConfig
from vlm.data.remote import FetchRules
from vlm.infer.chat import Conversation
from vlm.messages import Message
from vlm.models.build import build
from vlm.models.generate import Sampling


@pytest.fixture
def session(tmp_path, monkeypatch) -> Session:
    """On `cat.png` and `a dog.png` in the working folder."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("cat.png")
    Image.new("RGB", (20, 10), "blue").save("a dog.png")
    model = build(VisionLanguageConfig(vision="tiny-clip", language="tiny-qwen2"), precision="fp32")
    return Session(Conversation(model, sampling=Sampling(max_new_tokens=4)), rules=FetchRules(allow_private=True))


def asked(session: Session) -> list[str]:
    return [message.text for message in session.conversation.messages if message.role == "user"]


def sizes(session: Session) -> list[tuple[int, int]]:
    return [picture.size for picture in session.conversation.images]


def test_pictures_in_a_line_are_part_of_the_question(session):
    assert session.take("cat.png what is this?")
    assert session.take("and 'a dog.png'?")
    assert session.take("which is larger?")
    assert asked(session) == ["<image>\nwhat is this?", "and <image>?", "which is larger?"]
    assert sizes(session) == [(40, 30), (20, 10)]


def test_pictures_wait_for_the_next_question(session, capsys):
    for line in ("cat.png", '/image "a dog.png" ./cat.png', "which is largest, 'a dog.png' or another?", "and now?"):
        assert session.take(line)
    assert asked(session) == ["<image>\n" * 3 + "which is largest, <image> or another?", "and now?"]
    assert sizes(session) == [(40, 30), (20, 10), (40, 30), (20, 10)]
    assert capsys.readouterr().err.splitlines() == [
        "1 picture (40x30); 1 for the next question",
        "2 pictures (20x10, 40x30); 3 for the next question",
    ]


def test_a_picture_comes_from_a_server(session, archive_server: ArchiveServer, tmp_path, capsys):
    url = archive_server.serve("cat.png", (tmp_path / "cat.png").read_bytes())
    session.take(f"{url} what is this?")
    assert sizes(session) == [(40, 30)]
    session.rules = FetchRules()
    session.take(f"{url} what is this?")
    assert "which is no public address" in capsys.readouterr().err
    assert len(asked(session)) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/image nowhere.png", "There is no image file nowhere.png"),
        ("/nowhere/cat.png what?", "There is no image file /nowhere/cat.png"),
        ("cat.png /nowhere/cat.png what?", "There is no image file /nowhere/cat.png"),
        ("what is <image>?", "1 <image> placeholders for 0 pictures"),
        ("/image", "Say which picture: /image PATH"),
        ("/rest", "No chat command named '/rest'. Did you mean '/reset'"),
        ("/usr/share and more", "No chat command named '/usr/share'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(session, line, message, capsys):
    assert session.take(line)
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert (asked(session), session.pictures) == ([], {})


def test_pictures_of_a_question_that_failed_wait_for_the_next_one(session, capsys):
    session.take("cat.png " + "blue " * 1000)
    assert "the language model reads 512" in capsys.readouterr().err
    session.take("cat.png what is this?")  # sent again with the picture, which is there once
    assert asked(session) == ["<image>\nwhat is this?"]


def test_undo_and_reset(session, capsys):
    session.take("cat.png what is this?")
    session.take("why?")
    session.take("/undo")
    assert asked(session) == ["<image>\nwhat is this?"]
    session.take("cat.png")
    session.take("/reset")
    assert (asked(session), sizes(session), session.pictures) == ([], [], {})
    session.take("/undo")
    assert capsys.readouterr().err.splitlines()[-3:] == [
        "1 picture (40x30); 1 for the next question",
        "The conversation is forgotten.",
        "There is no question to forget.",
    ]


def test_history_shows_turns_and_pictures_in_their_places(session, capsys):
    session.conversation.system = (Message("system", "Be brief."),)
    session.take("is cat.png or 'a dog.png' larger?")
    answer = capsys.readouterr().out.strip()
    session.take("/history")
    assert capsys.readouterr().out.splitlines() == [
        "system: Be brief.",
        "user: is [picture 1, 40x30] or [picture 2, 20x10] larger?",
        f"assistant: {answer}",
    ]


def test_help_names_every_command_and_two_of_them_end(session, capsys):
    assert session.take("/help")
    assert capsys.readouterr().out.strip() == HELP
    assert {word for word in session.commands if word not in HELP} == {"/exit"}
    assert not session.take("/quit")
    assert not session.take("/exit")


def test_ctrl_c_stops_the_answer_and_not_the_session(session, capsys):
    language, calls = session.conversation.model.language, []

    def interrupt(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.02)  # so that on a busy machine, too, the answer is not at its end before the session runs again

    hook = language.blocks()[0].register_forward_pre_hook(interrupt)
    session.conversation.sampling = Sampling(max_new_tokens=300)
    assert session.take("cat.png what is this?")
    hook.remove()
    assert len(calls) < 300
    assert "Stopped; the question is not part of the conversation. Its 1 picture will be part of the next one." in capsys.readouterr().err
    session.conversation.sampling = Sampling(max_new_tokens=4)
    assert session.take("what is this?")
    assert asked(session) == ["<image>\nwhat is this?"]


def test_ctrl_c_at_the_prompt_and_empty_lines_are_passed_over(monkeypatch, capsys):
    typed = iter(["  one ", KeyboardInterrupt, "", "two", EOFError, "three"])

    def read(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", read)
    assert list(lines()) == ["one", "two"]
    assert "/quit or Ctrl-D ends" in capsys.readouterr().err


def test_an_answer_is_shown_from_its_first_letter(capsys):
    show(["", "  ", " a", " b"])
    assert capsys.readouterr().out == "a b\n"


def test_an_answer_cannot_command_the_terminal(session, capsys, monkeypatch):
    monkeypatch.setattr(session.conversation, "say", lambda text, images: iter(["a\x1b]0;", "title\x07\r\x9b2J\x7f\tb\n\u00e9"]))
    session.take("what is this?")
    assert capsys.readouterr().out == "a\ufffd]0;title\ufffd\ufffd\ufffd2J\ufffd\tb\n\u00e9\n"
    session.conversation.messages = (Message("user", "why?"), Message("assistant", "\x1b[2J"))
    session.take("/history")
    assert capsys.readouterr().out == "user: why?\nassistant: \ufffd[2J\n"


def test_lines_of_earlier_sessions_come_back(tmp_path, monkeypatch):
    readline = pytest.importorskip("readline")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stdout", Terminal())
    readline.clear_history()
    with input_history(tmp_path / "new" / "lines"):
        readline.add_history("what is this?")
    readline.clear_history()
    with input_history(tmp_path / "new" / "lines"):
        assert readline.get_history_item(1) == "what is this?"
    readline.clear_history()


def test_where_nobody_types_no_history_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with input_history(tmp_path / "lines"):
        pass
    assert not (tmp_path / "lines").exists()
