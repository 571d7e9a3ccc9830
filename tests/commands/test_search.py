"""`vlm search` in data and in a folder of vectors."""

import re

import pytest
from captioned_squares import COLORS, write_squares

from vlm.__main__ import main
from vlm.data.benchmarks.captioned import open_captioned
from vlm.models.open import open_dual


@pytest.fixture
def squares(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_squares(tmp_path / "squares")
    return "squares/train.json"


def table(said: str) -> list[tuple[float, str]]:
    """Cosine and file of each line of the printed tables."""
    return [(float(number), file) for number, file in re.findall(r"^ +(-?\d\.\d{4}) .* (\S+\.png) *$", said, re.MULTILINE)]


def test_what_is_found_is_what_the_model_itself_says_in_data_and_in_its_vectors(squares, tmp_path, capsys):
    line = ["--model", "tiny-clip", "--precision", "fp32", "--text", "a gold square", "--image", "squares/train-teal.png", "-k", "5"]
    assert main(["search", squares, *line]) == 0
    said = capsys.readouterr().out
    model, data = open_dual("tiny-clip", precision="fp32"), open_captioned(squares, data_root=tmp_path)
    images = model.encode_image([picture.open() for picture in data.pictures])
    wanted = (model.encode_text(["a gold square"]) @ images.T).topk(5)
    seen = table(said)
    assert len(seen) == 10
    assert [cosine for cosine, _ in seen[:5]] == pytest.approx(wanted.values[0].tolist(), abs=2e-3)  # vectors are stored in fp16
    assert seen[5][1] == "squares/train-teal.png" and seen[5][0] == pytest.approx(1, abs=2e-3)
    page = (tmp_path / "runs" / "search.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 10 and page.count("data:image/png;base64,") == 11 and "a gold square" in page
    cache = next((tmp_path / "data" / "features").glob("*image-*/"))
    assert main(["search", str(cache), *line, "--out", "page.html"]) == 0
    again = table(capsys.readouterr().out)
    assert [cosine for cosine, _ in again] == [cosine for cosine, _ in seen]
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<figure>") == 10


@pytest.mark.dist
def test_two_processes_print_one_table_of_what_one_finds(squares, tmp_path, torchrun, capsys):
    line = ["search", str(tmp_path / squares), "--model", "tiny-clip", "--precision", "fp32", "--device", "cpu", "--text", "a gold square", "-k", "5"]
    done = torchrun("-m", "vlm", *line)
    assert main([*line, "--data-root", str(tmp_path / "other")]) == 0
    alone = table(capsys.readouterr().out)
    assert len(alone) == 5 and table(done.stdout) == alone


def test_a_picture_that_is_gone_is_said_on_the_page(squares, tmp_path):
    line = ["--model", "tiny-clip", "--text", "x", "-k", "12"]
    assert main(["search", squares, *line]) == 0
    (tmp_path / "squares" / "train-red.png").unlink()
    cache = next((tmp_path / "data" / "features").glob("*image-*/"))
    assert main(["search", str(cache), *line]) == 0
    page = (tmp_path / "runs" / "search.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(COLORS) - 1 and "There is no image file" in page


def test_vectors_of_another_encoder_or_without_names_are_refused(squares, tmp_path, capsys):
    assert main(["search", squares, "--model", "tiny-clip", "--text", "x"]) == 0
    cache = next((tmp_path / "data" / "features").glob("*image-*/"))
    assert main(["search", str(cache), "--model", "tiny-siglip", "--text", "x"]) == 2
    assert f"The vectors in {cache} are of tiny-clip-image" in capsys.readouterr().err
    cache.with_name(f"{cache.name}.pictures.jsonl").unlink()
    assert main(["search", str(cache), "--model", "tiny-clip", "--text", "x"]) == 2
    assert "Run `vlm embed DATA --model M`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([], "Say what to look for: --text"),
        (["--image", "gone.png"], "There is no image file gone.png"),
        (["--text", "x", "--model", "nobody"], "There is no run that begins with 'nobody'"),
        (["--text", "x", "--image-source", "no/such/folder"], "'no/such/folder'. Name a local folder with --image-source and --text-source"),
    ],
)
def test_what_makes_no_sense_is_one_line(squares, capsys, line, said):
    assert main(["search", squares, "--model", "tiny-clip", *line]) == 2
    assert said in capsys.readouterr().err
