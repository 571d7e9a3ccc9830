"""What `vlm chat` does with each line: a question, pictures, or a command such as /undo. The conversation itself is `vlm.infer.chat`'s."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

from vlm.data.remote import FetchRules, open_picture
from vlm.errors import ConfigError, UnknownNameError, VLMError
from vlm.infer.chat import Conversation
from vlm.infer.chat_line import names_in, read_line
from vlm.messages import IMAGE_PLACEHOLDER

HELP = """/image PATH|URL ...   pictures for the next question
/undo                 forget the last question and its answer
/reset                forget the whole conversation
/history              show the conversation
/help                 show this
/quit                 end, as Ctrl-D does
A path or URL of a picture in a question, pasted or dragged into the terminal, is looked at too. Ctrl-C stops an answer."""
MOST_LINES = 1000  # of the input history that are kept
# Control characters but tab and line break: a terminal obeys them, and an answer may say whatever a picture makes it say.
CONTROL = dict.fromkeys((*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)), "\N{REPLACEMENT CHARACTER}")


class Session:
    """A conversation in the terminal, and the pictures that wait for the next question."""

    def __init__(self, conversation: Conversation, *, rules: FetchRules, pictures: Mapping[str, Image.Image] | None = None):
        """Begin.

        Args:
            conversation: With the model.
            rules: What may be fetched.
            pictures: What the first question is about, by name.
        """
        self.conversation, self.rules = conversation, rules
        self.pictures = dict(pictures or {})  # by name, so that a question that is sent again after Ctrl-C has its picture once
        self.commands: dict[str, Callable[[str], bool]] = {
            "/image": self._image,
            "/undo": self._undo,
            "/reset": self._reset,
            "/history": self._history,
            "/help": self._help,
            "/quit": lambda _: False,
            "/exit": lambda _: False,
        }

    def take(self, line: str) -> bool:
        """Do what a line says; False if it ends the session. An error ends neither the session nor the conversation, nor does Ctrl-C."""
        try:
            return self._take(line)
        except VLMError as error:
            _notice(str(error))
        except KeyboardInterrupt:
            kept = f" Its {_number(self.pictures)} will be part of the next one." if self.pictures else ""
            _notice(f"\nStopped; the question is not part of the conversation.{kept}")
        return True

    def _take(self, line: str) -> bool:
        word, _, rest = line.partition(" ")
        if word in self.commands:
            return self.commands[word](rest)
        said = read_line(line)
        if line.startswith("/") and not (said.pictures or said.placed):  # else a path
            raise UnknownNameError("chat command", word, self.commands)
        self._wait(said.pictures)
        if said.text:
            self._ask(said.text, said.placed)
        return True

    def _ask(self, text: str, placed: tuple[str, ...]) -> None:
        inside = [open_picture(name, self.rules) for name in placed]
        if inside:
            text = f"{IMAGE_PLACEHOLDER}\n" * len(self.pictures) + text
        show(self.conversation.say(text, [*self.pictures.values(), *inside]))
        self.pictures = {}

    def _wait(self, names: Iterable[str]) -> None:
        """Have pictures ready for the next question; all or none."""
        pictures = {name: open_picture(name, self.rules) for name in names}
        self.pictures |= pictures
        if pictures:
            sizes = ", ".join(f"{picture.width}x{picture.height}" for picture in pictures.values())
            _notice(f"{_number(pictures)} ({sizes}); {len(self.pictures)} for the next question")

    def _image(self, rest: str) -> bool:
        if not rest.strip():
            raise ConfigError("Say which picture: /image PATH or /image URL.")
        self._wait(names_in(rest))
        return True

    def _undo(self, _: str) -> bool:
        _notice("The last question is forgotten." if self.conversation.undo() else "There is no question to forget.")
        return True

    def _reset(self, _: str) -> bool:
        self.conversation.reset()
        self.pictures = {}
        _notice("The conversation is forgotten.")
        return True

    def _history(self, _: str) -> bool:
        sizes = iter([f"[picture {i}, {one.width}x{one.height}]" for i, one in enumerate(self.conversation.images, 1)])
        for message in (*self.conversation.system, *self.conversation.messages):
            first, *others = message.text.split(IMAGE_PLACEHOLDER)
            print(f"{message.role}: {first}{''.join(next(sizes) + other for other in others)}".translate(CONTROL))
        return True

    def _help(self, _: str) -> bool:
        print(HELP)
        return True


def show(pieces: Iterable[str]) -> None:
    """Print an answer as it comes, from its first letter on, control characters as replacement characters."""
    begun = False
    for piece in pieces:
        shown = piece if begun else piece.lstrip()
        begun = begun or bool(shown)
        print(shown.translate(CONTROL), end="", flush=True)
    print()


def lines() -> Iterator[str]:
    """What is typed, or comes through a pipe, until the end of the input; empty lines and Ctrl-C at the prompt are passed over."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            print(end="\n" if prompt else "")
            return
        except KeyboardInterrupt:
            _notice("\n/quit or Ctrl-D ends; Ctrl-C stops an answer.")
            continue
        if line:
            yield line


@contextmanager
def input_history(file: Path) -> Iterator[None]:
    """Arrow keys go through earlier lines, those of earlier sessions too, where the system has readline and somebody types."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield
        return
    readline.set_history_length(MOST_LINES)
    with suppress(OSError):  # there is none before the first session
        readline.read_history_file(file)
    try:
        yield
    finally:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
        except OSError as error:
            _notice(f"The lines of this session are not kept: {error}.")


def _number(pictures: Mapping[str, Image.Image]) -> str:
    return f"{len(pictures)} picture{'s' if len(pictures) > 1 else ''}"


def _notice(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
