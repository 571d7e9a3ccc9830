"""Score, select, train, search: the path of docs/curate.md on tiny parts, with every third caption moved to a wrong picture."""

import json
from pathlib import Path

import pytest
from captioned_squares import COLORS, write_squares
from score_files import write_scores

from vlm.__main__ import main
from vlm.data.benchmarks.captioned import open_captioned


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """A table of pairs of which eight are right and four wrong."""
    monkeypatch.chdir(tmp_path)
    write_squares(tmp_path / "squares")
    wrong = COLORS[::3]
    moved = dict(zip(wrong, (*wrong[1:], wrong[0]), strict=True))
    rows = [{"image": f"squares/train-{color}.png", "caption": f"a {moved.get(color, color)} square"} for color in COLORS]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def score(pairs: Path, out: Path) -> None:
    """A model that knows colors; a random one knows nothing. With real weights: vlm score --pairs PAIRS --model MODEL --out OUT."""
    data = open_captioned(str(pairs), data_root=Path("data"))
    files = [str(data.pictures[owner].source) for owner in data.owners.tolist()]
    is_right = [caption.split()[1] == Path(file).stem.removeprefix("train-") for file, caption in zip(files, data.captions, strict=True)]
    rows = zip(files, data.captions, is_right, strict=True)
    write_scores(out, [{"image": file, "caption": caption, "cos": 0.3 if right else 0.1} for file, caption, right in rows])


def test_what_is_scored_and_kept_is_prepared_trained_on_and_searched(pairs, tmp_path, capsys):
    score(pairs, tmp_path / "scores.parquet")
    assert main(["curate", "scores.parquet", "--min-cos", "0.2", "--drop-duplicates", "--out", "best.jsonl"]) == 0
    kept = [json.loads(line) for line in Path("best.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(kept) == 8 and all(row["caption"].split()[1] in row["image"] for row in kept)
    assert main(["preprocess", "--dataset-id", "best.jsonl", "--root-dir", "data", "--workers", "1"]) == 0
    assert main(["embed", "best", "--model", "tiny-ape/align"]) == 0
    settings = ["--stage.global-batch-size", "4", "--stage.max-steps", "2", "--device", "cpu"]
    assert main(["pretrain", "tiny-ape/align", "--stage.dataset", "best", *settings]) == 0
    run = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("runs/"))
    assert main(["pretrain", "tiny-ape/align", "--stage.dataset", "best.jsonl", "--model.name", "raw", *settings]) == 0
    capsys.readouterr()
    assert main(["search", "best", "--model", run, "--image", "squares/train-green.png", "-k", "3"]) == 0
    assert "runs/search.html" in capsys.readouterr().out and Path("runs/search.html").read_text(encoding="utf-8").count("<figure>") == 3
