"""`vlm evaluate vqav2` and its like, with a model of colors and with a trained one."""

import json
import re

import pytest
from color_answerer import COLORS, ColorAnswerer, contender
from PIL import Image

import vlm as package
from vlm.__main__ import main as vlm
from vlm.commands.evaluate_answers import BENCHMARKS, main
from vlm.data.questions import QUESTIONS
from vlm.errors import ConfigError


def find(name, arguments, world):
    return contender(name, ColorAnswerer(says=(lambda image: "red") if name == "red" else ColorAnswerer().says))


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for color, rgb in COLORS.items():
        Image.new("RGB", (8, 8), rgb).save(tmp_path / f"{color}.png")
    path = tmp_path / "mine.jsonl"
    path.write_text(
        "\n".join(json.dumps({"image": f"{color}.png", "question": "What color?", "answer": color}) for color in COLORS), encoding="utf-8"
    )
    return path


def test_the_help_lists_the_registered_benchmarks(capsys):
    assert set(BENCHMARKS) == set(QUESTIONS)
    assert vlm(["evaluate", "--help"]) == 0
    said = capsys.readouterr().out
    assert "vqav2" in said and "zero-shot" in said


def test_two_models_side_by_side_in_a_table_a_page_and_files_of_predictions(rows, capsys):
    main("questions", ["mine.jsonl", "--model", "color", "--model", "red", "--resamples", "20"], find=find)
    said = capsys.readouterr().out
    assert re.search(r"color +100\.0 \(100\.0 to 100\.0\)", said) and re.search(r"red +25\.0 \(", said)
    assert said.endswith("runs/evaluate/questions-mine/details.json\nruns/evaluate/questions-mine/report.html\n")
    folder = rows.parent / "runs/evaluate/questions-mine"
    predictions = [json.loads(line) for line in (folder / "red" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["score"] for row in predictions] == [1, 0, 0, 0]
    assert predictions[1] == {
        "id": "2",
        "prompt": "[user] <image>\nWhat color? [assistant]",
        "answer": "red",
        "truth": ["green"],
        "score": 0.0,
        "read": "red",
    }
    assert not (folder / ".lock").exists() and not (folder / "red" / "submission.json").exists()


def annotated(answer):
    return [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]


COCO = {
    "images": [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg"}],
    "annotations": [{"id": 1, "image_id": 42, "caption": "A dog on a red mat"}],
}
TEXTVQA = {"data": [{"question_id": 1, "question": "What?", "image_id": "a1", "answers": ["red"] * 10}]}
ROSETTA = {"data": [{"image_id": "a1", "ocr_tokens": ["NOKIA"]}]}
PROBLEM = {"question": "Which?", "choices": ["red", "blue"], "answer": 0, "hint": "", "image": "image.png", "subject": "natural science"}
MMMU = {"id": "validation_Art_1", "question": "<image 1>?", "options": "[]", "answer": "red", "question_type": "open", "image_1": "a.png"}
CHOICE = MMMU | {"id": "validation_Art_2", "options": "['green', 'red']", "answer": "B"}
PUBLISHED = {  # files by name; the data; where the picture lies; a part of the prompt; an answer that is wholly right; a metric
    "vqav2": (
        {
            "v2_OpenEnded_mscoco_val2014_questions.json": {"questions": [{"question_id": 7, "image_id": 42, "question": "Color?"}]},
            "v2_mscoco_val2014_annotations.json": {
                "annotations": [{"question_id": 7, "image_id": 42, "answer_type": "other", "answers": annotated("red")}]
            },
        },
        ".",
        "val2014/COCO_val2014_000000000042.jpg",
        "Color?\nAnswer the question using a single word or phrase.",
        "Red.",
        "accuracy",
    ),
    "textvqa": ({"TextVQA_0.5.1_val.json": TEXTVQA}, ".", "train_images/a1.jpg", "What?\nAnswer the question", "a red", "accuracy"),
    "textvqa-ocr": (
        {"TextVQA_0.5.1_val.json": TEXTVQA, "TextVQA_Rosetta_OCR_v0.2_val.json": ROSETTA},
        ".",
        "train_images/a1.jpg",
        "What?\nReference OCR token: NOKIA\nAnswer the question",
        "red",
        "accuracy",
    ),
    "captions": (
        {"captions_val2014.json": COCO},
        "captions_val2014.json",
        "val2014/COCO_val2014_000000000042.jpg",
        "Provide a one-sentence caption",
        "A dog, on a red mat.",
        "bleu4",
    ),
    "scienceqa": (
        {"problems.json": {"1": PROBLEM}, "pid_splits.json": {"test": ["1"]}},
        ".",
        "images/test/1/image.png",
        "Which?\nA. red\nB. blue\nAnswer with the option's letter",
        "A. red",
        "accuracy",
    ),
    "mmmu": ({"rows.json": [MMMU, CHOICE]}, "rows.json", "a.png", "<image>?\n\n(A) green\n(B) red\n\nAnswer", "The answer is (B) red", "accuracy"),
}


@pytest.mark.parametrize("benchmark", PUBLISHED)
def test_each_benchmark_goes_from_its_published_files_to_numbers(benchmark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, data, place, wording, said, metric = PUBLISHED[benchmark]
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(tmp_path / place)
    say = contender("m", ColorAnswerer(says=lambda image: said))
    main(benchmark, [data, "--model", "m", "--resamples", "2", "--out", "out"], find=lambda *_: say)
    result = json.loads((tmp_path / "out" / "details.json").read_text(encoding="utf-8"))["models"]["m"]
    assert result["metrics"][metric]["value"] == pytest.approx(1)
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "out" / "m" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert wording in prompts[-1]
    assert (tmp_path / "out" / "report.html").is_file()
    assert (tmp_path / "out" / "m" / "submission.json").is_file() == (benchmark != "scienceqa")


def test_a_limit_and_a_prompt_of_ones_own_are_said(rows, capsys):
    line = ["mine.jsonl", "--model", "color", "--limit", "2", "--prompt", r"{question}\nOne word.", "--out", "out", "--resamples", "5"]
    main("questions", line, find=find)
    assert "2 of 4 questions, drawn at random" in capsys.readouterr().out
    (first, _) = (rows.parent / "out" / "color" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["prompt"] == "[user] <image>\nWhat color?\nOne word. [assistant]"


def test_the_page_shows_the_wordings_that_were_used_and_no_others(rows):
    wordings = {}
    for name, others in (("open", {"answer": "red"}), ("choices", {"choices": ["red", "blue"], "answer": "A"})):
        (rows.parent / f"{name}.jsonl").write_text(json.dumps({"image": "red.png", "question": "Which?"} | others), encoding="utf-8")
        main("questions", [f"{name}.jsonl", "--model", "color", "--resamples", "2", "--out", name], find=find)
        settings = json.loads((rows.parent / name / "details.json").read_text(encoding="utf-8"))["settings"]
        wordings[name] = {key: text for key, text in settings.items() if "prompt" in key}
    assert wordings["open"] == {"prompt": "{question}"}
    assert wordings["choices"].keys() == {"prompt"} and "{choices}" in wordings["choices"]["prompt"]


def test_a_test_split_gives_no_numbers_and_a_file_to_submit(rows, capsys):
    (rows.parent / "test.json").write_text(
        json.dumps([{"image": "red.png", "question": "Color?"}, {"image": "gone.png", "question": "?"}]), encoding="utf-8"
    )
    main("vizwiz", ["test.json", "--model", "color", "--out", "out"], find=find)
    said = capsys.readouterr().out
    assert "References are not published" in said and "1 of 2 questions could not be asked" in said and "first gone.png: There is no image" in said
    assert json.loads((rows.parent / "out" / "color" / "submission.json").read_text(encoding="utf-8")) == [
        {"image": "red.png", "answer": "red"},
        {"image": "gone.png", "answer": ""},
    ]


def test_pictures_that_were_trained_on_are_refused_unless_that_is_allowed_and_said(rows, capsys):
    train = rows.parent / "train.json"
    turns = [{"from": "human", "value": "<image>\nColor?"}, {"from": "gpt", "value": "x"}]
    train.write_text(json.dumps([{"id": "a", "image": "copy.png", "conversations": turns}]), encoding="utf-8")
    Image.open(rows.parent / "red.png").save(rows.parent / "copy.png")
    line = ["mine.jsonl", "--model", "color", "--resamples", "2", "--out", "out"]
    with pytest.raises(ConfigError, match=r"25 % of these images were trained on: 1 of 4 \(0 by id, 1 by content\), first .*red\.png"):
        main("questions", [*line, "--trained-on", "train.json"], find=find)
    assert not (rows.parent / "out").exists()
    main("questions", [*line, "--trained-on", "train.json", "--allow-overlap"], find=find)
    assert "25 % of these images were trained on" in capsys.readouterr().out
    main("questions", line, find=find)
    assert "Not checked whether these images were trained on" in capsys.readouterr().out
    assert "Not checked whether" in (rows.parent / "out" / "report.html").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_made_is_one_line(rows):
    (rows.parent / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^file cannot be written: File exists\. Name another folder with --out\.$"):
        main("questions", ["mine.jsonl", "--model", "color", "--resamples", "2", "--out", "file"], find=find)


def test_settings_that_make_no_sense_are_one_line(rows, capsys):
    with pytest.raises(ConfigError, match="Say which model"):
        main("questions", ["mine.jsonl"], find=find)
    with pytest.raises(ConfigError, match="Name each model once"):
        main("questions", ["mine.jsonl", "--model", "a", "--model", "a"], find=find)
    with pytest.raises(ConfigError, match="--method likelihood is for multiple choice"):
        main("questions", ["mine.jsonl", "--model", "a", "--method", "likelihood"], find=find)
    with pytest.raises(SystemExit):
        main("questions", ["mine.jsonl", "--model", "a", "--limit", "0"], find=find)
    assert "--limit is at least 1; got 0" in capsys.readouterr().err
    assert vlm(["evaluate", "questions", "mine.jsonl", "--model", "gone"]) == 2
    assert "There is no run that begins with 'gone'" in capsys.readouterr().err
    assert vlm(["evaluate", "questions", "mine.jsonl", "--model", ""]) == 2
    assert "The name of a model is empty" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--vision-source is for one --model; got 2"):
        main("questions", ["mine.jsonl", "--model", "a", "--model", "b", "--vision-source", "x"], find=find)
    assert vlm(["evaluate", "vqa", "mine.jsonl"]) == 2
    assert "Did you mean 'vqav2'" in capsys.readouterr().err


def test_a_trained_model_is_asked_by_generation_and_by_likelihood(tiny, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = package.train(tiny("align", max_steps=1))
    assert (
        vlm(
            [
                "evaluate",
                "questions",
                str(data),
                "--model",
                str(run),
                "--max-new-tokens",
                "3",
                "--resamples",
                "5",
                "--out",
                "a",
                "--precision",
                "fp32",
            ]
        )
        == 0
    )
    rows = [json.loads(line) for line in next((tmp_path / "a").glob("*/predictions.jsonl")).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 8 and all("score" in row for row in rows) and "<image>\nWhat color?" in rows[0]["prompt"]
    manifest = next(run.glob("checkpoints/*/model.json"))
    manifest.write_text(manifest.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert vlm(["evaluate", "questions", str(data), "--model", str(run), "--max-new-tokens", "3", "--out", "a", "--precision", "fp32"]) == 2
    assert "holds predictions of another evaluation: model.json sha256 was" in capsys.readouterr().err
    line = ["evaluate", "questions", str(data), "--model", str(run), "--max-new-tokens", "3", "--out", "c", "--precision", "fp32"]
    assert vlm([*line, "--language-source", str(tmp_path / "gone")]) == 2
    assert "Name a local folder with --vision-source or --language-source" in capsys.readouterr().err
    choices = [{"image": str(data.parent / "red.png"), "question": "Which?", "choices": ["x", "y", "z"][:n], "answer": "A"} for n in (2, 3)]
    (tmp_path / "choices.json").write_text(json.dumps(choices), encoding="utf-8")
    assert vlm(["evaluate", "questions", "choices.json", "--model", str(run), "--method", "likelihood", "--resamples", "5", "--out", "b"]) == 0
    rows = [json.loads(line) for line in next((tmp_path / "b").glob("*/predictions.jsonl")).read_text(encoding="utf-8").splitlines()]
    assert [set(row["log_probs"]) for row in rows] == [{"A", "B"}, {"A", "B", "C"}]
    assert "accuracy" in capsys.readouterr().out
