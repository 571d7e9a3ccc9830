"""Files of predictions: kept over kills, refused for other settings."""

import json

import pytest

from vlm.errors import ConfigError
from vlm.evaluate.predictions import Prediction, PredictionFolder

SETTINGS = {"weights": "abc", "method": "generate"}


def made(id, answer="yes", **others):
    return Prediction(id=id, answer=answer, **others)


def test_what_a_killed_evaluation_wrote_is_kept_but_for_half_a_line_and_what_failed(tmp_path):
    folder = PredictionFolder(tmp_path / "run")
    folder.begin(SETTINGS)
    with folder.part(0) as write:
        write([made("a"), made("b", "U+2028: \u2028", prompt="[user] hi", log_probs={"A": -1.0})])
    with folder.part(1) as write:
        write([made("c"), made("d", "", error="broken picture")])
    with (folder.path / "part-0001.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "e", "ans')
    again = PredictionFolder(tmp_path / "run")
    again.begin(SETTINGS)
    assert set(again.made()) == {"a", "b", "c"}
    assert again.made()["b"] == made("b", "U+2028: \u2028", prompt="[user] hi", log_probs={"A": -1.0})
    with again.part(0) as write:
        write([made("d"), made("e")])
    assert [one.id for one in again.collect(["e", "d", "c", "b", "a"])] == ["e", "d", "c", "b", "a"]
    path = again.finish({"id": one.id, "answer": one.answer, "score": 1} for one in again.collect(["a", "b"]))
    assert [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").split("\n") if line] == ["a", "b"]
    assert sorted(file.name for file in again.path.iterdir()) == ["predictions.jsonl", "settings.json"]
    assert set(again.made()) == {"a", "b"}


def test_other_settings_are_refused_unless_predictions_are_replaced(tmp_path):
    folder = PredictionFolder(tmp_path)
    folder.begin(SETTINGS)
    with folder.part(0) as write:
        write([made("a")])
    with pytest.raises(ConfigError, match=r"weights was 'abc' and is 'xyz'.*--out.*--overwrite"):
        folder.begin(SETTINGS | {"weights": "xyz"})
    assert set(folder.made()) == {"a"}
    folder.begin(SETTINGS | {"weights": "xyz"}, overwrite=True)
    assert folder.made() == {}


def test_missing_predictions_are_an_error(tmp_path):
    folder = PredictionFolder(tmp_path)
    folder.begin(SETTINGS)
    with pytest.raises(ConfigError, match=r"2 of 2 predictions are missing .* All ranks must see this folder"):
        folder.collect(["a", "b"])
