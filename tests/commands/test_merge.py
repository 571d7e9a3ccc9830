import pytest

import vlm
from vlm.__main__ import main


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """A run with an adapter in `runs/`."""
    run_dir = vlm.train(tiny("finetune", max_steps=2))
    monkeypatch.chdir(tmp_path)
    return run_dir


def test_merged_model_chats_like_the_run(run, data, tmp_path, capsys):
    assert main(["merge", "tiny+fin", "merged"]) == 0
    said = capsys.readouterr().out
    assert "merged language; largest difference of a logit" in said
    assert "vlm chat merged --image" in said
    answers = []
    for name in (str(run), "merged"):
        question = [name, "What color?", "--image", str(data.parent / "red.png"), "--max-new-tokens", "5", "--precision", "fp32"]
        assert main(["chat", *question]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != ""


def test_rounding_is_said_of_bf16(run, capsys):
    assert main(["merge", str(run), "merged", "--dtype", "bf16"]) == 0
    assert "stored in bf16, whose rounding changes a logit by up to" in capsys.readouterr().out


def test_what_cannot_be_merged_is_one_line(run, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    assert main(["merge", str(run), "there"]) == 2
    assert main(["merge", str(run), "merged"]) == 0
    assert main(["merge", "merged", "again"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vlm merge:")]
    assert [words in line for words, line in zip(("there exists", "merged has no adapter"), lines, strict=True)] == [True, True]
