"""The rows of a JSON file, one at a time: an array of rows, or one row after the other (JSON lines). Knows no format.

What the file begins with decides, not its name: many files of lines are called `.json`. Memory is that of a piece of the file, however long it is.
A broken line costs its row; a fault in an array costs the file, because nobody knows where its next row begins.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from vlm.errors import DataFormatError

PIECE = 2**18  # characters read at a time: many rows, little memory
MAX_ROW = 2**26  # characters of one row, pictures in base64 included; longer ones mean that a bracket is missing
MARGIN = 12  # longest stretch that the end of a piece can cut in two without JSON's own complaint: two \uXXXX of one character
SPACE = " \t\r\n"
LONG_OBJECT = 2**20  # characters from which `beginning_of_rows` does not read an object whole


class _NotJSON(DataFormatError):
    """Text that cannot be decoded; `said` is the fault without file and row."""

    def __init__(self, row: str, said: str):
        super().__init__(f"{row}: {said} Mend the file there.")
        self.said = said


def read_json_rows(path: Path, *, errors: str = "strict") -> Iterator[tuple[int, Any]]:
    """Numbers from 1 and decoded values of the rows; of a line that cannot be decoded, the error that says why.

    Args:
        path: The file.
        errors: What happens to bytes that are no UTF-8, as `open` takes it.

    Raises:
        DataFormatError: If the file cannot be read, is empty, or holds an array that is not JSON; row, line and character are named.
    """
    with _opened(path, errors) as file:
        window = _Window(path, file)
        first = window.peek()
        if not first:
            raise DataFormatError(f"{path} is empty; expected an array of rows, or one row a line.")
        yield from _array(window) if first == "[" else _lines(window)


def beginning_of_rows(path: Path, *, errors: str = "strict") -> Iterator[tuple[int, Any]]:
    """As `read_json_rows`, for a look at the first rows' keys: of a very long object, which is a file of its own, its members up to the first list with one item.

    Raises:
        DataFormatError: As for `read_json_rows`; also if an array has no row.
    """
    if (long := _long_object(path, errors)) is not None:
        yield 1, long
        return
    number = 0
    for number, row in read_json_rows(path, errors=errors):
        yield number, row
    if not number:
        raise DataFormatError(f"{path} has no row: its array is empty.")


def load_json(path: Path) -> Any:
    """The whole of a file that is one value.

    Raises:
        DataFormatError: If the file cannot be read, or is not JSON.
    """
    with _opened(path) as file:
        window = _Window(path, file, longest=sys.maxsize)
        value = window.value()
        if window.peek():
            raise window.error("text follows the end of the value")
        return value


@contextmanager
def _opened(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    """A text file, its byte order mark passed over."""
    try:
        file = path.open(encoding="utf-8-sig", errors=errors)
    except OSError as error:
        raise DataFormatError(f"{path} cannot be read: {error.strerror}.") from None
    with file:
        yield file


class _Window:
    """The part of a file that is being decoded: what lies before it is forgotten, what lies behind is not read yet."""

    def __init__(self, path: Path, file: TextIO, *, longest: int = MAX_ROW):
        self.path, self.file, self.longest = path, file, longest
        self.text, self.at, self.ended = "", 0, False
        self.row = 1
        self._characters = self._lines = 0  # forgotten ones
        self._decoder = json.JSONDecoder(parse_constant=self._refuse)

    def peek(self) -> str:
        """The next character that is no white space, or nothing at the end of the file."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in SPACE:
                    return self.text[self.at]
                self.at += 1
            if self.ended:
                return ""
            self._read()

    def skip_line(self) -> None:
        """Pass over the rest of the line."""
        while (end := self.text.find("\n", self.at)) < 0:
            self.at = len(self.text)
            if self.ended:
                return
            self._read()
        self.at = end + 1

    def take(self) -> None:
        """Pass over the character that `peek` showed."""
        self.at += 1

    def expect(self, mark: str) -> None:
        """Pass over a character that must come next."""
        if self.peek() != mark:
            raise self.error(f"expected {mark!r}" if self.peek() else "the file ends too early, it may be cut short")
        self.take()

    def value(self) -> Any:
        """Decode the value that begins here."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated")
                if self.ended and (unfinished or error.pos >= len(self.text.rstrip())):
                    raise self.error("the file ends in the middle of a row, it may be cut short", error.pos) from None
                if self.ended or not (unfinished or error.pos > len(self.text) - MARGIN):
                    raise self.error(error.msg, error.pos) from None
            except DataFormatError:
                raise
            except RecursionError:
                raise self.error("brackets are nested too deeply") from None
            except ValueError as error:
                raise self.error(str(error).partition(";")[0]) from None  # a number of thousands of digits
            else:
                if self.ended or end <= len(self.text) - MARGIN:
                    self.at = end
                    return value
            if len(self.text) - self.at > self.longest:
                raise self.error(f"the row is longer than {self.longest:,} characters; a bracket or quotation mark may be missing")
            self._read()

    def error(self, fault: str, at: int | None = None) -> _NotJSON:
        """An error that names the row and the place."""
        at = self.at if at is None else at
        line = self._lines + self.text.count("\n", 0, at) + 1
        place = f"at line {line}, character {self._characters + at + 1:,} of the file"
        return _NotJSON(f"{self.path}, row {self.row}", f"not JSON: {fault.rstrip('.').removesuffix(' at')}, {place}.")

    def _read(self) -> None:
        """Forget what is decoded and read on, as much as is left at least: a long row is then decoded again only a few times."""
        self._characters += self.at
        self._lines += self.text.count("\n", 0, self.at)
        rest = self.text[self.at :]
        self.at = 0
        try:
            piece = self.file.read(max(PIECE, len(rest)))
        except UnicodeDecodeError as error:
            raise DataFormatError(f"{self.path} is not UTF-8 at or after row {self.row}: {error.reason}. Save the file as UTF-8.") from None
        except OSError as error:
            raise DataFormatError(f"{self.path} cannot be read: {error.strerror}.") from None
        self.text, self.ended = rest + piece, not piece

    def _refuse(self, constant: str) -> Any:
        raise self.error(f"{constant} is no JSON value, write null")


def _array(window: _Window) -> Iterator[tuple[int, Any]]:
    window.take()
    if window.peek() != "]":
        while True:
            yield window.row, window.value()
            if window.peek() == "]":
                break
            window.expect(",")
            if window.peek() == "]":
                raise window.error("a comma stands before the closing bracket")
            window.row += 1
    window.take()
    if window.peek():
        raise window.error("text follows the closing bracket of the array")


def _lines(window: _Window) -> Iterator[tuple[int, Any]]:
    while window.peek():
        try:
            value = window.value()
        except _NotJSON as error:  # the window stands where the row begins: the next line does not belong to it
            value = DataFormatError(error.said)
            window.skip_line()
        yield window.row, value
        window.row += 1


def _long_object(path: Path, errors: str) -> dict[str, Any] | None:
    """The beginning of the object that a file begins with, or None if it is short, broken or no object."""
    with _opened(path, errors) as file:
        window = _Window(path, file, longest=LONG_OBJECT)
        if window.peek() != "{":
            return None
        with suppress(_NotJSON):
            window.value()
        if len(window.text) <= LONG_OBJECT:
            return None
    try:
        return _beginning(path, errors)
    except _NotJSON:
        return None


def _beginning(path: Path, errors: str) -> dict[str, Any]:
    """The members of a long object up to its first list, and of that the first item."""
    members: dict[str, Any] = {}
    with _opened(path, errors) as file:
        window = _Window(path, file)
        window.peek()
        window.take()
        while window.peek() == '"':
            key = window.value()
            window.expect(":")
            if window.peek() == "[":
                window.take()
                return members | {key: [] if window.peek() == "]" else [window.value()]}
            members[key] = window.value()
            if window.peek() != "}":
                window.expect(",")
    return members
