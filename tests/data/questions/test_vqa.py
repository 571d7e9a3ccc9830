"""VQAv2, TextVQA, VizWiz, GQA and POPE in the layout of their official files."""

import json

import pytest

from vlm.data.questions import QUESTIONS
from vlm.data.questions.base import Source
from vlm.errors import ConfigError, DataFormatError, UnknownNameError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def opened(name, path, **others):
    return QUESTIONS[name].open(Source(str(path), **others))


@pytest.fixture
def vqav2(tmp_path):
    """A folder as the archives of visualqa.org unpack into one."""
    questions = [{"image_id": 42, "question": "What color?", "question_id": 42000}, {"image_id": 42, "question": "How many?", "question_id": 42001}]
    annotations = [
        {
            "question_id": number,
            "image_id": 42,
            "answer_type": kind,
            "question_type": "what",
            "multiple_choice_answer": said,
            "answers": [{"answer": said, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)],
        }
        for number, kind, said in ((42001, "number", "2"), (42000, "other", "red"))
    ]
    write(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", {"data_type": "mscoco", "data_subtype": "val2014", "questions": questions})
    write(tmp_path / "v2_mscoco_val2014_annotations.json", {"data_subtype": "val2014", "annotations": annotations})
    write(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": questions})
    (tmp_path / "val2014").mkdir()
    return tmp_path


def test_vqav2_joins_questions_and_annotations_by_id(vqav2):
    data = opened("vqav2", vqav2)
    color, number = data.questions
    assert data.name == "v2_OpenEnded_mscoco_val2014"
    assert (color.id, color.text, color.answers, color.groups) == ("42000", "What color?", ("red",) * 10, {"answer type": "other"})
    assert number.answers == ("2",) * 10
    assert color.images == (vqav2 / "val2014" / "COCO_val2014_000000000042.jpg",)
    assert opened("vqav2", vqav2 / "v2_OpenEnded_mscoco_val2014_questions.json") == data


def test_vqav2_test_splits_have_no_answers_and_the_pictures_of_test2015(vqav2):
    (question, _) = opened("vqav2", vqav2, split="test-dev2015").questions
    assert question.answers == () and question.images[0].name == "COCO_test2015_000000000042.jpg"


def test_vqav2_test_dev_is_submitted_with_empty_answers_to_the_rest_of_test2015_if_that_file_is_there(vqav2):
    assert opened("vqav2", vqav2, split="test-dev2015").not_asked == []
    dev = json.loads((vqav2 / "v2_OpenEnded_mscoco_test-dev2015_questions.json").read_text(encoding="utf-8"))["questions"]
    rest = {"question_id": 99, "image_id": 42, "question": "Else?"}
    write(vqav2 / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": [*dev, rest]})
    data = opened("vqav2", vqav2, split="test-dev2015")
    assert len(data.questions) == 2 and data.not_asked == ["99"]


def test_vqav2_says_what_is_missing(vqav2):
    with pytest.raises(UnknownNameError, match="Did you mean 'val2014'"):
        opened("vqav2", vqav2, split="val2015")
    with pytest.raises(DataFormatError, match=r"holds no v2_OpenEnded_mscoco_train2014_questions\.json"):
        opened("vqav2", vqav2, split="train2014")
    with pytest.raises(ConfigError, match=r"no folder .*gone \(--images\)"):
        opened("vqav2", vqav2, images=vqav2 / "gone")
    write(vqav2 / "v2_mscoco_val2014_annotations.json", {"annotations": []})
    with pytest.raises(DataFormatError, match="the question 42000 has no annotation in"):
        opened("vqav2", vqav2)
    (vqav2 / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(DataFormatError, match=r"v2_mscoco_val2014_annotations\.json is missing"):
        opened("vqav2", vqav2)


def test_textvqa(tmp_path):
    row = {"question_id": 34602, "question": "what brand?", "image_id": "003a8ae2ef43b901", "answers": ["nokia"] * 10, "ocr_tokens": ["NOKIA"]}
    write(tmp_path / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [row]})
    (tmp_path / "train_images").mkdir()
    (question,) = opened("textvqa", tmp_path).questions
    assert (question.id, question.answers) == ("34602", ("nokia",) * 10)
    assert question.images == (tmp_path / "train_images" / "003a8ae2ef43b901.jpg",)


def test_textvqa_with_ocr_tokens_of_the_rows_or_of_rosettas_file(tmp_path):
    row = {"question_id": 1, "question": "what brand?", "image_id": "a1", "answers": ["nokia"] * 10}
    write(
        tmp_path / "TextVQA_0.5.1_val.json",
        {"data": [row | {"ocr_tokens": ["NOKIA", "3310"]}, row | {"question_id": 2, "image_id": "a2", "ocr_tokens": []}]},
    )
    some, none = opened("textvqa-ocr", tmp_path).questions
    assert some.text == "what brand?\nReference OCR token: NOKIA, 3310"  # with the prompt's last line, LLaVA's three
    assert none.text == "what brand?\nReference OCR token: "
    assert opened("textvqa-ocr", tmp_path).name == "TextVQA_0.5.1_val-ocr"
    assert opened("textvqa", tmp_path).questions[0].text == "what brand?"
    write(tmp_path / "TextVQA_0.5.1_val.json", {"data": [row]})
    with pytest.raises(DataFormatError, match=r"lack 'ocr_tokens', and TextVQA_Rosetta_OCR_v0\.2_val\.json is not beside it.* or take textvqa\."):
        opened("textvqa-ocr", tmp_path)
    rosetta = tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json"
    write(rosetta, {"data": [{"image_id": "a1", "ocr_tokens": ["Nokia"], "ocr_info": []}]})
    (question,) = opened("textvqa-ocr", tmp_path).questions
    assert question.text.endswith("token: Nokia") and question.answers == ("nokia",) * 10
    write(rosetta, {"data": [{"image_id": "b", "ocr_tokens": []}]})
    with pytest.raises(DataFormatError, match="the file of OCR tokens has no picture 'a1'"):
        opened("textvqa-ocr", tmp_path)
    write(rosetta, {"data": [{"image_id": "a1", "ocr_tokens": "Nokia"}]})
    with pytest.raises(DataFormatError, match=r"Rosetta_OCR.*row 1: 'ocr_tokens' is not a list of texts: found 'Nokia'"):
        opened("textvqa-ocr", tmp_path)


def test_vizwiz_of_val_and_test(tmp_path):
    answers = [{"answer": "unanswerable", "answer_confidence": "yes"}] * 10
    val = {"image": "VizWiz_val_00000000.jpg", "question": "Ok. What is this?", "answers": answers, "answer_type": "unanswerable", "answerable": 0}
    write(tmp_path / "Annotations" / "val.json", [val])
    write(tmp_path / "Annotations" / "test.json", [{"image": "VizWiz_test_00000000.jpg", "question": "What?"}])
    (tmp_path / "val").mkdir()
    (question,) = opened("vizwiz", tmp_path).questions
    assert question.images[0].resolve() == tmp_path / "val" / "VizWiz_val_00000000.jpg"
    assert (question.answers, question.groups) == (("unanswerable",) * 10, {"answer type": "unanswerable"})
    assert opened("vizwiz", tmp_path, split="test").questions[0].answers == ()


def test_gqa_takes_the_balanced_questions(tmp_path):
    row = {"imageId": "n1", "question": "Left?", "answer": "no", "isBalanced": True, "types": {"structural": "verify", "semantic": "rel"}}
    write(tmp_path / "testdev_balanced_questions.json", {"201": row, "202": row | {"isBalanced": False}})
    (question,) = opened("gqa", tmp_path).questions
    assert (question.id, question.answers, question.images) == ("201", ("no",), (tmp_path / "n1.jpg",))
    assert question.groups == {"answer type": "binary", "structural type": "verify", "semantic type": "rel"}


def test_gqa_asks_all_questions_of_the_file_for_its_server_which_has_no_answers(tmp_path):
    row = {"imageId": "n1", "question": "Left?", "isBalanced": True}
    write(tmp_path / "submission_all_questions.json", {"201": row, "202": row | {"isBalanced": False}})
    assert [question.id for question in opened("gqa", tmp_path, split="submission").questions] == ["201", "202"]


def test_pope_of_one_file_and_of_a_folder_of_categories(tmp_path):
    row = {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a dog in the image?", "label": "no"}
    for category in ("random", "popular"):
        write(tmp_path / f"coco_pope_{category}.json", json.dumps(row) + "\n" + json.dumps(row | {"question_id": 2, "label": "yes"}))
    (tmp_path / "val2014").mkdir()
    data = opened("pope", tmp_path)
    assert [(question.id, question.answers) for question in data.questions] == [
        ("popular/1", ("no",)),
        ("popular/2", ("yes",)),
        ("random/1", ("no",)),
        ("random/2", ("yes",)),
    ]
    assert data.questions[0].images == (tmp_path / "val2014" / row["image"],) and data.questions[0].candidates == ("Yes", "No")
    assert opened("pope", tmp_path / "coco_pope_random.json").name == "coco_pope_random"
    write(tmp_path / "coco_pope_random.json", json.dumps(row | {"label": "maybe"}))
    with pytest.raises(DataFormatError, match=r"row 1: 'label' is 'maybe'; expected yes or no"):
        opened("pope", tmp_path)


def test_a_row_that_lacks_something_is_named_by_file_and_number(tmp_path):
    write(tmp_path / "TextVQA_0.5.1_val.json", {"data": [{"question_id": 1, "question": "what?", "answers": []}]})
    with pytest.raises(DataFormatError, match=r"TextVQA_0\.5\.1_val\.json, row 1: 'image_id' is missing: found the keys"):
        opened("textvqa", tmp_path)
    write(tmp_path / "TextVQA_0.5.1_val.json", [1])
    with pytest.raises(DataFormatError, match=r"TextVQA_0\.5\.1_val\.json: the row is not an object"):
        opened("textvqa", tmp_path)
    with pytest.raises(DataFormatError, match="There is no file or folder"):
        opened("textvqa", tmp_path / "gone")
