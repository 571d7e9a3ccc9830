"""A picture with a list of questions and answers, as in Moondream's fine-tuning notebooks (vikhyat/moondream). Opens no picture.

    {"image": "a.jpg", "qa": [{"question": "What does the text say?", "answer": "XJ2F"}]}

Several questions are turns of one conversation; the picture comes before the first, unless the questions say where.
"""

from typing import Any

from vlm.data.formats.base import (
    Format,
    fields_of,
    finished,
    images_of,
    list_of,
    pairs_of_turns,
    read_by_row,
    shown,
    text_of,
    with_placeholders,
)
from vlm.data.sample import Sample
from vlm.errors import DataFormatError


def parse_row(row: Any, name: str) -> Sample:
    """One row.

    Args:
        row: The decoded JSON value.
        name: Name of a row without `id`.

    Raises:
        DataFormatError: If keys, texts or the number of images are not as the format says.
    """
    row = fields_of(row)
    pairs, images = list_of(row, "qa"), images_of(row)
    for i, pair in enumerate(pairs, start=1):
        if not isinstance(pair, dict):
            raise DataFormatError(f"'qa' holds no question with its answer: item {i} is {shown(pair)}; expected 'question' and 'answer'.")
    questions = with_placeholders([text_of(pair.get("question"), "'question'") for pair in pairs], len(images))
    answers = [text_of(pair.get("answer"), "'answer'") for pair in pairs]
    return finished(row, name, images, pairs_of_turns(questions, answers))


SPECS = {
    "question-answer": Format(
        read=read_by_row(parse_row),
        recognizes=lambda row: "qa" in row,
        description="question-answer lists: `image` and `qa` of `question` and `answer`",
        aliases=("moondream",),
    )
}
