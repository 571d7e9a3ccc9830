"""VQAv2, TextVQA and VizWiz: questions with the answers of ten people, in their official files. Opens no picture.

v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/COCO_val2014_000000000042.jpg     VQAv2 (visualqa.org)
TextVQA_0.5.1_val.json, train_images/<image_id>.jpg                                                                      TextVQA (textvqa.org)
val.json, val/VizWiz_val_00000000.jpg                                                                                    VizWiz (vizwiz.org)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.data.formats.base import shown
from vlm.data.questions.base import SHORT_ANSWER, Question, QuestionSet, QuestionSpec, Source, annotators_of, rows_of, split_of, word_of
from vlm.errors import DataFormatError

VQA_SPLITS = ("val2014", "train2014", "test-dev2015", "test2015")
WORD_OF_QUESTIONS = "OpenEnded_mscoco_{split}_questions.json"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."  # LLaVA 1.5's
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
    return QuestionSet(file.stem.removesuffix("_questions"), questions)


def _annotation(where: str, row: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    return annotators_of(row, where), {"answer type": word_of(row, "answer_type", where)}


def _coco_picture(source: Source, file: Path, number: str) -> Path:
    """COCO's file name; pictures of test-dev are those of test."""
    split = next((split for split in VQA_SPLITS if split in file.name), VQA_SPLITS[0]).replace("test-dev", "test")
    folder = source.picture_folder(file, [split, f"images/{split}", "images"])
    return folder / f"COCO_{split}_{number.zfill(NUMBER_DIGITS)}.jpg"


def open_textvqa(source: Source) -> QuestionSet:
    """TextVQA from its JSON file or the folder of it."""
    split = split_of(source, ("val", "train", "test"))
    file = source.file([f"TextVQA_0.5.1_{split}.json"])
    folder = source.picture_folder(file, ["train_images" if "test" not in file.name else "test_images", "images"])
    questions = [
        Question(
            id=word_of(row, "question_id", where),
            text=word_of(row, "question", where),
            images=(folder / f"{word_of(row, 'image_id', where)}.jpg",),
            answers=annotators_of(row, where),
        )
        for where, row in rows_of(file, "data")
    ]
    return QuestionSet(file.stem, questions)


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
    """GQA from a file of questions or the folder of it; of a file with all questions, the balanced ones, which alone are scored.

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
        if row.get("isBalanced", True):
            image = folder / f"{word_of(row, 'imageId', where)}.jpg"
            answers = (word_of(row, "answer", where),) if "answer" in row else ()
            questions.append(Question(id=number, text=word_of(row, "question", where), images=(image,), answers=answers, groups=_types(row)))
    return QuestionSet(f"gqa-{file.stem}", questions)


def _types(row: Mapping[str, Any]) -> dict[str, str]:
    types = row.get("types")
    return {f"{kind} type": types[kind] for kind in ("structural", "semantic") if kind in types} if isinstance(types, dict) else {}


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
