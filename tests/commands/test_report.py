import sys

import pytest
from tiny_data import data  # noqa: F401

import vlm
from vlm.__main__ import main
from vlm.conf.schema import TrackingConfig


@pytest.fixture
def run_dir(tiny, data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    return vlm.train(tiny("align", validation=str(data), max_steps=2, tracking=TrackingConfig(num_samples=2)))


def test_report_of_a_real_run_is_one_file_that_needs_no_other(run_dir, capsys):
    assert main(["report", "tiny+al"]) == 0
    assert capsys.readouterr().out == "runs/tiny+align+x7/report.html\n"
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "<h1>tiny+align+x7</h1>" in page and "2 of 2" in page and "The color is green." in page
    assert page.count("data:image/png;base64,") == 2
    assert "Gradient norm" in page and "<svg" in page
    assert not [word for word in ('src="http', 'href="http', "<script", "<link", "@import", "url(http") if word in page]


def test_out_and_run_root_say_where(run_dir, tmp_path, capsys):
    assert main(["report", "tiny", "--run-root", str(run_dir.parent), "--out", str(tmp_path / "pages" / "a.html")]) == 0
    assert (tmp_path / "pages" / "a.html").is_file()
    assert not (run_dir / "report.html").exists()


def test_page_that_cannot_be_written_is_one_line(run_dir, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["report", "tiny", "--out", str(tmp_path / "file" / "a.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_without_a_run_and_without_matplotlib_the_remedy_is_said(run_dir, capsys, monkeypatch):
    assert main(["report"]) == 2
    assert "Say which run: `vlm report RUN [RUN ...]`" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", "tiny"]) == 2
    assert 'pip install "vlm[report]"' in capsys.readouterr().err
