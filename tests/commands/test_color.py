import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned_squares import write_squares

import vlm as vlm_package
from vlm.__main__ import main as vlm
from vlm.color.associations import UW71_RATINGS, read_ratings
from vlm.color.colors import UW71, open_colors
from vlm.color.prompts import CONCEPTS
from vlm.color.study import MODELS
from vlm.commands.color import main
from vlm.errors import ConfigError, DataFormatError, UnknownNameError
from vlm.models.dual_build import find_pair

STUDY = {  # its models, by the names of its files: where the weights of both towers lie, and the side of a picture
    "ViT-B/32": ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32", 224),
    "ViT-B/16": ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16", 224),
    "ViT-L/14": ("openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14", 224),
    "Microsoft/LLM2CLIP": (
        "microsoft/LLM2CLIP-Openai-B-16",
        "microsoft/LLM2CLIP-Openai-B-16+microsoft/LLM2CLIP-Llama-3-8B-Instruct-CC-Finetuned",
        224,
    ),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Colored:
    """Pictures by their color, texts by their length."""

    def encode_image(self, images):
        return torch.nn.functional.normalize(torch.tensor([[*image.getpixel((0, 0)), 50.0] for image in images]), dim=1)

    def encode_text(self, texts):
        return torch.nn.functional.normalize(torch.tensor([[len(text) % 7, len(text) % 5, len(text) % 3, 1.0] for text in texts]), dim=1)

    def logit_scale(self):
        return 20.0, 0.0


def load(name, device, precision):
    assert (device, precision) == ("auto", "fp32")
    return Colored()


def texts_of(style):
    return Path(f"runs/color/text_prompts/test_{style}/text_prompts.txt").read_text(encoding="utf-8").splitlines()


def printed_table(text):
    return [line.split() for line in text.splitlines() if line.strip()]


def test_run_analyze_and_report_of_all_styles(tmp_path, capsys):
    styles = [word for style in range(1, 6) for word in ("--prompt-style", str(style))]
    main(["run", "--model", "ViT-B/32", "--model", "runs/mine/", *styles], load=load)
    said = capsys.readouterr().out.splitlines()
    assert "runs/color/cosine_similarities/runs_mine/test_4_scores/similarity_scores_df.txt" in said
    assert said.count("runs/color/images") == 1
    assert said[-1] == "Compare with people's ratings: vlm color analyze; as a page: vlm color report"
    main(["analyze"])
    said = capsys.readouterr().out
    assert "normalized metrics, means over the concepts" in said and "ViT-B/32, style 4" in said and "ViT-B/32, style 5: names of colors" in said
    with Path("runs/color/evaluation_metrics/ViT_B_32/test_1_metrics/normalized_metrics_df.txt").open(encoding="utf-8") as file:
        assert [row["word"] for row in csv.DictReader(file)] == list(CONCEPTS)
    main(["report", "--normalize", "softmax"])
    assert capsys.readouterr().out == "runs/color/report.html\n"
    assert "runs/mine, style 3" in (tmp_path / "runs/color/report.html").read_text(encoding="utf-8")


def test_a_registered_dual_encoder_runs_without_a_hub():
    assert vlm(["color", "run", "--model", "tiny-clip", "--out", "out", "--device", "cpu"]) == 0
    with Path("out/cosine_similarities/tiny_clip/test_1_scores/similarity_scores_df.txt").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 21 and len(rows[0]) == 72 and all(-1 <= float(cell) <= 1 for row in rows[1:] for cell in row[1:])


def test_models_of_the_study_are_looked_up_by_its_names(monkeypatch):
    asked = []
    monkeypatch.setattr("vlm.models.open.open_dual", lambda name, **options: asked.append((name, options)) or Colored())
    page = (Path(__file__).parents[2] / "docs" / "color.md").read_text(encoding="utf-8")
    named = re.findall(r"`([^`]+)`", re.search(r"the study's four by its names: (.*)\.\n", page)[1])
    assert named == list(MODELS) == list(STUDY)
    main(["run", *(word for name in named for word in ("--model", name))])
    assert [options for _, options in asked] == [{"device": "auto", "precision": "fp32"}] * 4
    pairs = [find_pair(name) for name, _ in asked]
    assert [(pair.image.source, pair.text.source, pair.image.image_size) for pair in pairs] == list(STUDY.values())


def test_a_run_that_was_trained_is_asked_and_analyzed(capsys):
    write_squares(Path("squares"))
    settings = ["--stage.global-batch-size", "4", "--stage.max-steps", "2", "--device", "cpu"]
    assert vlm(["pretrain", "tiny-ape/align", "--stage.dataset", "squares/train.json", *settings]) == 0
    run = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("runs/"))
    assert vlm(["color", "run", "--model", run, "--prompt-style", "1", "--prompt-style", "4", "--prompt-style", "5", "--device", "cpu"]) == 0
    details = [json.loads(path.read_text(encoding="utf-8")) for path in Path("runs/color/cosine_similarities").rglob("details.json")]
    assert [one["model"] for one in details] == [run] * 3
    dual = vlm_package.load(run, device="cpu", precision="fp32")
    with next(Path("runs/color").rglob("test_1_scores/similarity_scores_df.txt")).open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    cosines = dual.similarity(open_colors(UW71).swatches()[:2], [f"The color of the image represents the word {row[0]}." for row in rows[1:]])
    assert np.array([row[1:3] for row in rows[1:]], dtype=float) == pytest.approx(cosines.T.numpy(), abs=1e-5)
    capsys.readouterr()
    assert vlm(["color", "analyze"]) == 0
    said = capsys.readouterr().out
    assert f"{run}, style 1" in said and f"{run}, style 4" in said and f"{run}, style 5: names of colors" in said
    assert len(list(Path("runs/color").rglob("normalized_metrics_df.txt"))) == 2


def test_weights_that_cannot_be_had_are_one_line(capsys):
    assert vlm(["color", "run", "--model", "ViT-B/32"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "openai/clip-vit-base-patch32" in said
    assert "--image-source and --text-source" in said and "--model." not in said and not Path("runs").exists()


def test_weights_of_a_folder_are_taken(monkeypatch):
    asked = []
    monkeypatch.setattr("vlm.models.open.open_dual", lambda name, **options: asked.append(options) or Colored())
    main(["run", "--model", "ViT-B/32", "--image-source", "weights", "--text-source", "weights"])
    assert (asked[0]["image_source"], asked[0]["text_source"]) == ("weights", "weights")
    with pytest.raises(ConfigError, match="are of one model"):
        main(["run", "--model", "ViT-B/32", "--model", "ViT-B/16", "--image-source", "weights"])


def test_unknown_model_is_told_with_the_nearest_pair(capsys):
    assert vlm(["color", "run", "--model", "clip-b32"]) == 2
    said = capsys.readouterr().err
    assert "There is no run that begins with 'clip-b32' in runs" in said and "did you mean clip-b32-224" in said


def test_style_5_takes_names_of_colors_and_the_others_concepts():
    Path("names.txt").write_text("teal\nyellow\n", encoding="utf-8")
    Path("words.txt").write_text("love\nice cream\n", encoding="utf-8")
    main(["run", "--model", "m", "--prompt-style", "3", "--prompt-style", "5", "--concepts", "words.txt", "--color-names", "names.txt"], load=load)
    assert texts_of(5) == ["The color of the image is teal.", "The color of the image is yellow."]
    assert texts_of(3)[1] == "The color of the image is associated with the concept ice cream."


def test_predictions_made_elsewhere_are_analyzed_without_a_model(tmp_path, capsys):
    ratings = read_ratings()
    halved = [["", *ratings.colors], *([concept, *(0.5 * row)] for concept, row in zip(ratings.concepts, ratings.values, strict=True))]
    with Path("gpt.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(halved)
    main(["analyze", "gpt.csv", "--metrics", "raw", "--out", "out", "--plots", "False"])
    with Path("out/evaluation_metrics/gpt/metrics/evaluation_metrics_df.txt").open(encoding="utf-8") as file:
        rows = {row["word"]: row for row in csv.DictReader(file)}
    assert len(rows) == 70 and list(rows["love"]) == ["", "word", "PCC", "SRC", "TV", "EMD", "ED"]
    assert float(rows["love"]["PCC"]) == pytest.approx(1)
    assert float(rows["love"]["TV"]) == pytest.approx(0.25 * ratings.of(["love"]).values.sum())
    main(["report", "gpt.csv", "--ratings", str(UW71_RATINGS), "--page", "page.html"])
    assert (tmp_path / "page.html").is_file()


def test_what_is_not_in_the_means_is_said(capsys):
    people = read_ratings()
    rows = [["", *people.colors], ["Banana", *people.of(["banana"]).values[0]], ["apple", *[0.2] * 71], ["[/love] story", *[0.1] * 71]]
    for name, some in (("[/a]", rows), ("b", rows[:2])):
        Path(f"{name.replace('/', '')}.csv").write_text("\n".join(",".join(map(str, row)) for row in some), encoding="utf-8")
    main(["analyze", "[a].csv", "b.csv", "--out", "out"])
    said = capsys.readouterr().out
    assert [line.split()[:3] for line in said.splitlines() if line.startswith((" [a]", " b"))] == [["[a]", "2", "\N{EN DASH}"], ["b", "1", "1.0000"]]
    assert "[a]: nobody rated [/love] story; left out." in said
    assert "[a]: no correlation, and so no mean, because all values are equal for apple." in said


def test_tables_are_analyzed_and_shown_without_torch():
    people = read_ratings().of(["apple", "banana"])
    Path("own.csv").write_text(people.as_csv(), encoding="utf-8")
    lines = [["analyze", "own.csv", "--out", "out"], ["report", "own.csv", "--out", "out"], ["palette", "apple", "banana"]]
    heavy = ["torch", "transformers", "pandas", "matplotlib"]
    code = f"import sys\nfrom vlm.commands.color import main\nfor line in {lines}: main(line)\nprint('loaded:', *[n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_raw_metrics_come_with_the_studys_pictures(monkeypatch):
    monkeypatch.setattr("vlm.color.plots.DPI", 10)
    with Path("own.csv").open("w", encoding="utf-8") as file:
        file.write(",".join(["", *map(str, range(1, 72))]) + "\n" + ",".join(["apple", *map(str, np.linspace(0, 1, 71))]) + "\n")
    main(["analyze", "own.csv", "--metrics", "raw", "--out", "out"])
    assert sorted(path.name for path in Path("out/evaluation/own/eval").iterdir()) == [
        "apple_gt_scores.png",
        "apple_pred_scores.png",
        "apple_ranking_plot_by_gt.png",
        "apple_ranking_plot_by_pred.png",
    ]


def test_palette_is_printed_and_written(capsys):
    main(["palette", "apple", "banana", "grape", "--out", "palette.json", "--draws", "100"])
    said = capsys.readouterr().out
    assert "#fcdb42 (70)" in said and "of simulated observers' assignments are right (chance 33%)" in said
    with Path("palette.json").open(encoding="utf-8") as file:
        written = json.load(file)
    assert [row["concept"] for row in written["rows"]] == ["apple", "banana", "grape"] and written["mean_contrast"] > 0.9


def test_palette_of_one_concept_is_json_without_nan(capsys):
    main(["palette", " APPLE", "--out", "palette.json"])
    said = capsys.readouterr().out
    written = json.loads(Path("palette.json").read_text(encoding="utf-8"), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert written["rows"][0]["concept"] == "apple" and written["least_delta_e"] is None and written["capacity"] == 0
    assert "nan" not in said and "look most alike" not in said


def test_concepts_that_go_with_no_color_are_refused():
    Path("own.csv").write_text(",".join(["", *map(str, range(1, 72))]) + "\n" + "\n".join(f"{name},{','.join(['0.2'] * 71)}" for name in "ab"))
    with pytest.raises(DataFormatError, match=r"own\.csv has 0 for 'a' and every color"):
        main(["discriminability", "a", "b", "--associations", "own.csv", "--rescale"])


def test_library_of_own_colors_gets_interpolated_associations(capsys):
    with Path("brand.csv").open("w", encoding="utf-8") as file:
        file.write("name,hex\nlemonade,#ffe040\ncrimson,#e02020\nnight,#101030\n")
    main(["palette", "apple", "banana", "--colors", "brand.csv", "--draws", "100"])
    said = capsys.readouterr().out
    assert "interpolated from UW-71" in said and "(lemonade)" in said and "(crimson)" in said and "(night)" not in said


def test_discriminability_of_concepts_and_of_a_given_palette(capsys):
    main(["discriminability", "apple", "banana", "--color", "70", "--color", "63", "--draws", "100", "--out", "found.json"])
    said = capsys.readouterr().out
    assert "0.2707" in said and "0.9987" in said
    with Path("found.json").open(encoding="utf-8") as file:
        written = json.load(file)
    assert written["palette"]["mean_contrast"] < 0.1 and written["capacity"] == pytest.approx(0.2707, abs=5e-5)  # the colors are the wrong way round


def test_cosines_are_not_taken_for_ratings():
    main(["run", "--model", "m", "--out", "out"], load=load)
    path = "out/cosine_similarities/m/test_1_scores/similarity_scores_df.txt"
    with pytest.raises(ConfigError, match=r"holds cosines of m, style 1, .*--rescale"):
        main(["palette", "apple", "corn", "--associations", path])
    main(["palette", "apple", "corn", "--associations", path, "--rescale", "--draws", "10"])


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        (["ran"], UnknownNameError, "Did you mean 'run'"),
        (["run"], ConfigError, "Say which model"),
        (["run", "--model", "m", "--prompt-style", "7"], ConfigError, "1 to 5; got 7"),
        (["run", "--model", "m", "--prompt-style", "5", "--concepts", "words.txt"], ConfigError, "--color-names instead of --concepts"),
        (["run", "--model", "m", "--color-names", "names.txt"], ConfigError, "add --prompt-style 5"),
        (["analyze"], DataFormatError, "There are no predictions"),
        (["palette"], ConfigError, "Name the concepts"),
        (["palette", "a", "a"], ConfigError, "'a' is there twice"),
        (["palette", "aple"], DataFormatError, "is called 'aple'. Did you mean apple"),
        (["palette", "apple", "Apple"], ConfigError, "'apple' is there twice"),
        (["analyze", "--scale", "5"], ConfigError, "with min-shift it has no effect"),
        (["discriminability", "apple"], ConfigError, "two concepts or more"),
    ],
)
def test_wrong_requests_are_refused(line, error, says):
    with pytest.raises(error, match=says):
        main(line, load=load)


def test_colors_that_nobody_rated_are_refused(capsys):
    Path("brand.txt").write_text("#ff0000\n#00ff00\n", encoding="utf-8")
    main(["run", "--model", "m", "--colors", "brand.txt"], load=load)
    assert capsys.readouterr().out.endswith("vlm color analyze --ratings FILE; as a page: vlm color report --ratings FILE\n")
    with pytest.raises(ConfigError, match=r"about the colors of brand\.txt, .* --ratings"):
        main(["analyze"])
    Path("ratings.csv").write_text(",1,2\napple,0.9,0.4\ncorn,0.1,0.3\n", encoding="utf-8")
    main(["analyze", "--ratings", "ratings.csv"])


def test_models_of_one_folder_are_refused():
    with pytest.raises(ConfigError, match="a-b and a/b have the same folder, a_b"):
        main(["run", "--model", "a-b", "--model", "a/b"], load=load)


def test_unknown_metrics_are_refused():
    main(["run", "--model", "m"], load=load)
    with pytest.raises(ConfigError, match="normalized or raw; got 'exact'"):
        main(["analyze", "--metrics", "exact"])


def test_help_lists_the_commands(capsys):
    main(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in ("run", "analyze", "report", "discriminability", "palette"))
