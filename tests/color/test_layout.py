import csv

import numpy as np
import pytest
from PIL import Image

from vlm.color.associations import Associations
from vlm.color.colors import UW71, Colors, open_colors
from vlm.color.layout import Prediction, find_predictions, folder_name, read_prediction, read_predictions, write_answer, write_inputs
from vlm.color.prompts import make_prompts
from vlm.color.study import Answer
from vlm.errors import DataFormatError


def answer(style, num_prompts):
    cosines = np.random.default_rng(0).random((num_prompts, 71)).astype(np.float32)
    scores = Associations(make_prompts(style, ["apple", "corn"]).concepts, open_colors(UW71).names, cosines[:2], "m")
    return Answer(scores, cosines, 100.0)


def test_files_lie_where_the_study_has_them(tmp_path):
    prompts = make_prompts(2, ["apple", "corn"])
    write_inputs(tmp_path, prompts, open_colors(UW71))
    write_answer(tmp_path, "ViT-B/32", prompts, answer(2, 2), colors=UW71)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    scores = "cosine_similarities/ViT_B_32/test_2_scores"
    assert files == {f"images/{i}.png" for i in range(1, 72)} | {
        "text_prompts/test_2/text_prompts.txt",
        f"{scores}/similarity_scores_df.txt",
        f"{scores}/details.json",
    }
    with Image.open(tmp_path / "images" / "29.png") as white:
        assert white.size == (224, 224) and white.mode == "RGB" and white.getpixel((0, 0)) == (255, 255, 255)
    lines = (tmp_path / "text_prompts/test_2/text_prompts.txt").read_text(encoding="utf-8")
    assert (
        lines == "The concept apple is well represented by the color of the image.\nThe concept corn is well represented by the color of the image.\n"
    )
    header = (tmp_path / scores / "similarity_scores_df.txt").read_text(encoding="utf-8").splitlines()[0]
    assert header == "," + ",".join(map(str, range(1, 72)))


def test_swatches_of_one_name_are_refused(tmp_path):
    with pytest.raises(DataFormatError, match=r"colors 'sky/day' and 'sky-day' would both be sky_day\.png; rename"):
        write_inputs(tmp_path, make_prompts(1), Colors(("sky/day", "sky-day"), np.zeros((2, 3))))
    assert not list(tmp_path.iterdir())


def test_folders_of_metrics_and_plots_are_the_studys(tmp_path):
    prediction = Prediction("Microsoft/LLM2CLIP", 3, answer(3, 2).scores)
    assert prediction.folder(tmp_path, "metrics") == tmp_path / "evaluation_metrics" / "Microsoft_LLM2CLIP" / "test_3_metrics"
    assert prediction.folder(tmp_path, "eval") == tmp_path / "evaluation" / "Microsoft_LLM2CLIP" / "test_3_eval"
    assert folder_name("runs/ape-demo+align+x7") == "runs_ape_demo+align+x7"


def test_what_was_written_is_read_with_its_model_style_scale_and_colors(tmp_path):
    written = answer(1, 2)
    path = write_answer(tmp_path, "ViT-B/32", make_prompts(1, ["apple", "corn"]), written, colors=UW71)
    read = read_prediction(path)
    assert (read.model, read.style, read.scale, read.colors, read.label) == ("ViT-B/32", 1, 100.0, UW71, "ViT-B/32, style 1")
    assert np.array_equal(read.scores.values.astype(np.float32), written.scores.values)
    (path.parent / "details.json").unlink()
    assert read_prediction(path).model == "ViT_B_32" and read_prediction(path).scale is None
    assert find_predictions(tmp_path) == [path]


def test_style_4_keeps_the_cosine_of_every_strength(tmp_path):
    path = write_answer(tmp_path, "m", make_prompts(4, ["apple", "corn"]), answer(4, 22), colors=UW71)
    with path.with_name("strength_scores_df.txt").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["concept"], row["strength"]) for row in rows[10:12]] == [("apple", "1.0"), ("corn", "0.0")] and len(rows) == 22


def test_files_made_elsewhere_are_called_by_their_name(tmp_path):
    (tmp_path / "gpt.csv").write_text(",1,2\napple,0.1,0.2\n", encoding="utf-8")
    assert read_prediction(tmp_path / "gpt.csv").label == "gpt"
    assert read_prediction(tmp_path / "gpt.csv").folder(tmp_path, "metrics") == tmp_path / "evaluation_metrics" / "gpt" / "metrics"
    with pytest.raises(DataFormatError, match="Two predictions are called 'gpt'"):
        read_predictions([tmp_path / "gpt.csv"] * 2)


def test_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(DataFormatError, match=r"There are no predictions in .*vlm color run --model NAME"):
        find_predictions(tmp_path)
