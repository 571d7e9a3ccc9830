"""VQAv2, TextVQA and VizWiz: questions with the answers of ten people, in their official files. Opens no picture.

v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/COCO_val2014_000000000042.jpg     VQAv2 (visualqa.org)
TextVQA_0.5.1_val.json, TextVQA_Rosetta_OCR_v0.2_val.json, train_images/<image_id>.jpg                                   TextVQA (textvqa.org)
val.json, val/VizWiz_val_00000000.jpg                                                                                    VizWiz (vizwiz.org)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm.data.formats.base import shown
from vlm.data.questions.base import SHORT_ANSWER, Question, QuestionSet, QuestionSpec, Source, annotators_of, rows_of, split_of, value_of, word_of
from vlm.errors import DataFormatError

VQA_SPLITS = ("val2014", "train2014", "test-dev2015", "test2015")
WORD_OF_QUESTIONS = "OpenEnded_mscoco_{split}_questions.json"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."  # LLaVA 1.5's
OCR_LINE = "\nReference OCR token: {}"  # LLaVA's llava_textvqa_val_v051_ocr.jsonl; it stays where nothing was read, as in lmms-eval
ROSETTA = "TextVQA_Rosetta_OCR_v0.2_"
NUMBER_DIGITS = 12  # of COCO's file names


def open_vqav2(source: Source) -> QuestionSet:
    """VQAv2 from the folder of its files, or from a file of questions with the annotations beside it; the test splits have no annotations.

    Raises:
        DataFormatError: If a file or an annotation is missing.
    """
    split = split_of(source, VQA_SPLITS)
    name = WORD_OF_QUESTIONS.format(split=split)
    file = source.file([f"v2_{name}", name])
    annotations = file.with_name(file.name.replace("OpenEnded_", "").replace("_questions", "_annotations"))
    known: dict[str, tuple[str, Mapping[str, Any]]] | None = None
    if annotations != file and annotations.is_file():
        known = {word_of(row, "question_id", where): (where, row) for where, row in rows_of(annotations, "annotations")}
    elif "test" not in file.name:
        raise DataFormatError(
            f"{file} has no annotations beside it: {annotations.name} is missing. Put it there, or take a test split, which has none."
        )
    questions = []
    for where, row in rows_of(file, "questions"):
        number = word_of(row, "question_id", where)
        if known is not None and number not in known:
            raise DataFormatError(f"{where}: the question {number} has no annotation in {annotations}.")
        answers, groups = _annotation(*known[number]) if known is not None else ((), {})
        image = _coco_picture(source, file, word_of(row, "image_id", where))
        questions.append(Question(id=number, text=word_of(row, "question", where), images=(image,), answers=answers, groups=groups))
    return QuestionSet(file.stem.removesuffix("_questions"), questions, not_asked=_rest_of_test(file, questions))


def _rest_of_test(file: Path, asked: Sequence[Question]) -> list[str]:
    """Beside test-dev's questions, those of the whole test split: the server takes answers to test-dev with empty ones to the others."""
    whole = file.with_name(file.name.replace("test-dev2015", "test2015"))
    if whole == file or not whole.is_file():
        return []
    known = {question.id for question in asked}
    return [number for where, row in rows_of(whole, "questions") if (number := word_of(row, "question_id", where)) not in known]


def _annotation(where: str, row: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    return annotators_of(row, where), {"answer type": word_of(row, "answer_type", where)}


def _coco_picture(source: Source, file: Path, number: str) -> Path:
    """COCO's file name; pictures of test-dev are those of test."""
    split = next((split for split in VQA_SPLITS if split in file.name), VQA_SPLITS[0]).replace("test-dev", "test")
    folder = source.picture_folder(file, [split, f"images/{split}", "images"])
    return folder / f"COCO_{split}_{number.zfill(NUMBER_DIGITS)}.jpg"


def open_textvqa(source: Source) -> QuestionSet:
    """TextVQA from its JSON file or the folder of it."""
    file = _textvqa_file(source)
    return QuestionSet(file.stem, [_textvqa_question(row, where, source, file) for where, row in rows_of(file, "data")])


def open_textvqa_ocr(source: Source) -> QuestionSet:
    """TextVQA with the words that a text reader found in the picture below each question, as LLaVA 1.5 is asked.

    They are in the rows (`ocr_tokens`) or in the file of Rosetta's words beside it.

    Raises:
        DataFormatError: If they are in neither.
    """
    file = _textvqa_file(source)
    rows = list(rows_of(file, "data"))
    with_words = rows if all("ocr_tokens" in row for _, row in rows) else rows_of(_rosetta_file(file), "data")
    words = {word_of(row, "image_id", where): _ocr_tokens(row, where) for where, row in with_words}
    questions = []
    for where, row in rows:
        question, image = _textvqa_question(row, where, source, file), word_of(row, "image_id", where)
        if image not in words:
            raise DataFormatError(f"{where}: the file of OCR tokens has no picture {image!r}. Take the file of the same split.")
        questions.append(replace(question, text=question.text + OCR_LINE.format(", ".join(words[image]))))
    return QuestionSet(f"{file.stem}-ocr", questions)


def _textvqa_file(source: Source) -> Path:
    return source.file([f"TextVQA_0.5.1_{split_of(source, ('val', 'train', 'test'))}.json"])


def _textvqa_question(row: Mapping[str, Any], where: str, source: Source, file: Path) -> Question:
    folder = source.picture_folder(file, ["train_images" if "test" not in file.name else "test_images", "images"])
    return Question(
        id=word_of(row, "question_id", where),
        text=word_of(row, "question", where),
        images=(folder / f"{word_of(row, 'image_id', where)}.jpg",),
        answers=annotators_of(row, where),
    )


def _rosetta_file(file: Path) -> Path:
    path = file.with_name(f"{ROSETTA}{file.stem.rpartition('_')[2]}.json")
    if not path.is_file():
        raise DataFormatError(
            f"{file} has no OCR tokens: its rows lack 'ocr_tokens', and {path.name} is not beside it. Put it there, or take textvqa."
        )
    return path


def _ocr_tokens(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    tokens = value_of(row, "ocr_tokens", where)
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise DataFormatError(f"{where}: 'ocr_tokens' is not a list of texts: found {shown(tokens)}.")
    return tuple(tokens)


def open_vizwiz(source: Source) -> QuestionSet:
    """VizWiz from its JSON file or the folder of it. A question's id is its picture's name: each picture has one question."""
    split = split_of(source, ("val", "train", "test"))
    file = source.file([f"{split}.json", f"Annotations/{split}.json"])
    folder = source.picture_folder(file, [file.stem, f"../{file.stem}", "images"])
    questions = []
    for where, row in rows_of(file):
        image = word_of(row, "image", where)
        groups = {"answer type": word_of(row, "answer_type", where)} if "answer_type" in row else {}
        questions.append(
            Question(id=image, text=word_of(row, "question", where), images=(folder / image,), answers=annotators_of(row, where), groups=groups)
        )
    return QuestionSet(f"vizwiz-{file.stem}", questions)


def open_gqa(source: Source) -> QuestionSet:
    """GQA from a file of questions or the folder of it; of all questions with answers the balanced ones, which alone are scored; without, all of them.

    Raises:
        DataFormatError: If the file is not an object of questions by id.
    """
    split = split_of(source, ("testdev", "val", "train", "submission", "test", "challenge"))
    file = source.file([f"{split}_balanced_questions.json", f"{split}_all_questions.json"])
    folder = source.picture_folder(file, ["images", "../images"])
    (content,) = [value for _, value in rows_of(file)] or [{}]
    questions = []
    for number, row in content.items():
        if not isinstance(row, dict):
            raise DataFormatError(f"{file}: the question {number} is not an object: found {shown(row)}.")
        where = f"{file}, question {number}"
        if row.get("isBalanced", True) or "answer" not in row:  # the server wants every question of its file
            image = folder / f"{word_of(row, 'imageId', where)}.jpg"
            answers = (word_of(row, "answer", where),) if "answer" in row else ()
            questions.append(Question(id=number, text=word_of(row, "question", where), images=(image,), answers=answers, groups=_types(row)))
    return QuestionSet(f"gqa-{file.stem}", questions)


def _types(row: Mapping[str, Any]) -> dict[str, str]:
    types = row.get("types")
    if not isinstance(types, dict):
        return {}
    groups = {f"{kind} type": str(types[kind]) for kind in ("structural", "semantic") if types.get(kind)}
    kind = groups.get("structural type")
    return ({"answer type": "open" if kind == "query" else "binary"} if kind else {}) | groups  # as GQA's script splits them


def open_pope(source: Source) -> QuestionSet:
    """POPE from one of its files, or all `*_pope_*.json` of a folder, each a category; a question's id has the category before its number.

    Raises:
        DataFormatError: If there is no such file, or a label is neither yes nor no.
    """
    path = source.path
    files = [path] if path.is_file() else sorted(path.glob("*_pope_*.json"))
    if source.split:
        raise DataFormatError(f"POPE has no split {source.split!r}: name the file of a category, such as coco_pope_random.json.")
    if not files:
        raise DataFormatError(f"{path} holds no file such as coco_pope_random.json. Name the folder that does.")
    questions = []
    for file in files:
        folder, category = source.picture_folder(file, ["val2014", "images", "../val2014"]), file.stem.rpartition("_pope_")[2]
        for where, row in rows_of(file):
            label = word_of(row, "label", where)
            if label not in ("yes", "no"):
                raise DataFormatError(f"{where}: 'label' is {label!r}; expected yes or no.")
            questions.append(
                Question(
                    id=f"{category}/{word_of(row, 'question_id', where)}",
                    text=word_of(row, "text", where),
                    images=(folder / word_of(row, "image", where),),
                    answers=(label,),
                    candidates=("Yes", "No"),
                    groups={"category": category},
                )
            )
    return QuestionSet(files[0].stem if len(files) == 1 else path.resolve().name, questions)


SPECS = {
    "vqav2": QuestionSpec(
        open=open_vqav2,
        prompt=f"{{question}}\n{SHORT_ANSWER}",
        measure="vqav2",
        description="VQAv2: short answers, ten annotators; the test splits give a file to submit.",
    ),
    "gqa": QuestionSpec(open=open_gqa, prompt=f"{{question}}\n{SHORT_ANSWER}", measure="gqa", description="GQA: short answers, exact match."),
    "textvqa": QuestionSpec(
        open=open_textvqa,
        prompt=f"{{question}}\n{SHORT_ANSWER}",
        measure="textvqa",
        description="TextVQA: questions about text in pictures, without OCR tokens.",
    ),
    "textvqa-ocr": QuestionSpec(
        open=open_textvqa_ocr,
        prompt=f"{{question}}\n{SHORT_ANSWER}",
        measure="textvqa",
        description="TextVQA: the same with OCR tokens below each question, as LLaVA's published numbers have it.",
    ),
    "vizwiz": QuestionSpec(
        open=open_vizwiz,
        prompt=f"{{question}}\n{UNANSWERABLE}\n{SHORT_ANSWER}",
        measure="vizwiz",
        description="VizWiz: questions of blind people; its test split gives a file to submit.",
    ),
    "pope": QuestionSpec(
        open=open_pope,
        prompt=f"{{question}}\n{SHORT_ANSWER}",
        measure="pope",
        description="POPE: is there such a thing in the picture? Accuracy, precision, recall, F1, yes-rate.",
    ),
}
