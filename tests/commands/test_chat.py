import io

import pytest
from tiny_data import COLORS

import vlm
from vlm.__main__ import main


@pytest.fixture
def run(tiny, data, tmp_path, monkeypatch):
    """A trained run in `runs/`, and pictures beside it."""
    run_dir = vlm.train(tiny("finetune", max_steps=1))
    monkeypatch.chdir(tmp_path)
    return run_dir


class Typed(io.StringIO):
    """Lines that somebody types at a terminal."""

    def isatty(self) -> bool:
        """True, as of a terminal."""
        return True


def ask(*words, data=None):
    return main(["chat", *map(str, words), "--max-new-tokens", "5", "--precision", "fp32"])


def test_answer_of_a_run_by_a_unique_prefix_is_the_models(run, data, capsys):
    assert ask("tiny+fin", "What color?", "--image", data.parent / "red.png") == 0
    said = capsys.readouterr().out
    from PIL import Image

    model = vlm.load(run, precision="fp32")
    answer = model.chat([Image.new("RGB", (40, 30), COLORS["red"])], "What color?", max_new_tokens=5)
    assert said.strip() == answer.strip() != ""


def test_answer_comes_piece_by_piece(run, data, monkeypatch):
    flushed = []
    monkeypatch.setattr("vlm.commands.chat_session.print", lambda *words, **options: flushed.append((words, options)), raising=False)
    assert ask(run, "What color?", "--image", data.parent / "red.png") == 0
    pieces = [words for words, options in flushed if options.get("flush")]
    assert len(pieces) > 1
    assert all(len(words) == 1 for words in pieces)


def test_without_a_question_lines_are_read_and_pictures_stay(run, data, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Typed("What color?\n\nAnd now?\n"))
    assert ask(run, "--image", data.parent / "red.png") == 0
    assert capsys.readouterr().out.count("> ") >= 3


def test_piped_questions_give_answers_alone(run, data, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("What color?\nAnd now?\n"))
    assert ask(run) == 0
    out = capsys.readouterr().out
    assert "> " not in out and out.endswith("\n")
    assert ask(run, "What color?") == 0
    assert out.startswith(capsys.readouterr().out)


def test_several_pictures(run, data):
    pictures = [data.parent / f"{color}.png" for color in ("red", "blue")]
    assert ask(run, "--image", pictures[0], "--image", pictures[1], "<image> or <image>?") == 0


def test_question_may_follow_the_picture_as_the_readme_writes_it(run, data, capsys):
    assert ask(run, "--image", data.parent / "red.png", "What color?") == 0
    after = capsys.readouterr().out
    assert ask(run, "What color?", "--image", data.parent / "red.png") == 0
    assert capsys.readouterr().out == after != ""


def test_every_missing_picture_is_noticed(run, data, capsys):
    assert ask(run, "--image", "missing.png", "--image", data.parent / "red.png", "What color?") == 2
    assert "missing.png" in capsys.readouterr().err


def test_a_line_that_cannot_be_answered_does_not_end_the_conversation(run, data, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Typed("what is <image>?\nWhat color?\n"))
    assert ask(run) == 0
    out = capsys.readouterr()
    assert "1 <image> placeholders for 0 pictures" in out.err
    assert out.out.count("> ") >= 3


def test_commands_pictures_and_sampling_of_a_conversation(run, data, monkeypatch, capsys):
    typed = f"{data.parent / 'red.png'}\nWhat color?\n/undo\nWhat shape?\n/history\n/quit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert ask(run, "--temperature", "1", "--top-k", "5", "--seed", "3", "--stop", "zzz", "--check") == 0
    said = capsys.readouterr()
    assert "A white picture instead of a black one moves" in said.out
    assert "user: What shape?" in said.out
    assert "The last question is forgotten." in said.err
    assert "never" not in said.out


def test_a_setting_without_effect_is_named(run, data, caplog):
    assert ask(run, "What color?", "--top-p", "0.9") == 0
    assert "Nothing is drawn at temperature 0, so top_p changes nothing. Set --temperature." in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope", "x"], "There is no run that begins with 'nope'"),
        (["tiny", "x", "--image", "missing.png"], "There is no image file missing.png"),
        (["tiny", "<image> <image>", "--image", "DATA/red.png"], "2 <image> placeholders for 1 pictures"),
        (["tiny", "word " * 600], "the language model reads 512"),
        (["tiny", "x", "--image", "http://127.0.0.1:1/a.png"], "which is no public address"),
        (["tiny", "x", "--top-p", "2"], "top_p is 2.0; it must be above 0 and at most 1"),
        (["nobody/nothing", "x"], "'nobody/nothing' is no run or folder here, and as a hub id it could not be fetched"),
        (["tiny", "x", "--device", "gpu"], "--device gpu is not one of auto, cuda, mps, cpu"),
    ],
)
def test_what_cannot_be_asked_is_one_line(run, data, words, message, capsys):
    assert ask(*(word.replace("DATA", str(data.parent)) for word in words)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vlm chat:")]
    assert len(said) == 1
    assert message in said[0]
