from types import SimpleNamespace

import pytest

from vlm.tracking import Progress, console
from vlm.tracking.console import duration, fold

METRICS = {
    "loss": 2.3456,
    "grad_norm": 0.8312,
    "lr/connector": 1e-3,
    "lr/language": 2e-5,
    "tokens_per_second": 12345.6,
    "images_per_second": 98.7,
    "data_wait_share": 0.014,
    "flops_per_second": 4.02e14,
    "mfu": 0.4121,
}


@pytest.fixture
def clock(monkeypatch):
    """`clock(0.0, 10.0)`: what the clock will say, reading after reading."""

    def says(*seconds):
        now = iter(seconds)
        monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(now)))

    return says


@pytest.fixture
def terminal(monkeypatch):
    """`terminal(80)`: standard error is a terminal of so many columns."""

    def of_width(columns):
        monkeypatch.setattr("rich.console.Console.is_terminal", True)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(columns))

    return of_width


def test_progress_without_a_terminal_prints_lines_with_time_left(monkeypatch, clock, capsys, shown):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    clock(0.0, 10.0, 20.0)
    progress = Progress("run", 4)
    progress.log(1, {"loss": 1.25, "tokens_per_second": 1234.0})
    progress.log(2, {"loss": 1.0})
    progress.log(2, {"validation_loss": 3.5})
    progress.show(2, shown)
    progress.finish()
    assert capsys.readouterr().err.splitlines() == [
        "run 1/4  loss 1.250  1,234 tokens/s  0:00:30 left",
        "run 2/4  loss 1.000  0:00:20 left",
        "  step 2  validation_loss 3.500",
        "  step 2  'color?' -> '[bold]red' (truth: 'red')",
        "  step 2  'Say yes.' -> 'No' (truth: 'Yes')",
    ]


def test_line_names_loss_norm_rates_by_part_speeds_and_shares(clock, capsys):
    clock(0.0, 3600.0)
    progress = Progress("run", 3)
    progress.log(1, METRICS)
    progress.finish()
    assert capsys.readouterr().err == (
        "run 1/3  loss 2.346  grad norm 0.831  lr connector 1.0e-03, language 2.0e-05  "
        "12,346 tokens/s  99 images/s  402 TFLOP/s  mfu 41.2 %  data wait 1 %  2:00:00 left\n"
    )


def test_skipped_step_without_finite_values_is_said(clock, capsys):
    clock(0.0, 1.0)
    progress = Progress("run", 1)
    progress.log(1, {"loss": 1.0, "num_skipped": 1})
    progress.finish()
    assert "step skipped" in capsys.readouterr().err


def test_time_left_of_a_resumed_run_counts_its_own_steps(clock, capsys):
    clock(0.0, 10.0)
    progress = Progress("run", 103, taken=100)
    progress.log(101, {"loss": 1.0})
    progress.finish()
    assert "run 101/103  loss 1.000  0:00:20 left" in capsys.readouterr().err


def test_progress_prints_seldom_and_always_the_last_step(clock, capsys):
    clock(0.0, 1.0, 2.0, 3.0)
    progress = Progress("run", 3)
    for step in (1, 2, 3):
        progress.log(step, {"loss": 1.0})
    progress.finish()
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["1/3", "3/3"]


@pytest.mark.parametrize("columns", [80, 120])
def test_progress_on_a_terminal_is_a_bar_over_metrics_that_fit(terminal, capsys, columns):
    terminal(columns)
    progress = Progress("phi2-siglip+align+x7", 20)
    progress.log(1, METRICS)
    progress.log(2, METRICS)
    progress.finish()
    shown = capsys.readouterr().err.splitlines()
    bar = next(line for line in shown if "2/20" in line)
    assert "phi2-siglip+align+x7" in bar and "left" in bar
    for phrase in ("loss 2.346", "lr connector 1.0e-03, language 2.0e-05", "12,346 tokens/s", "mfu 41.2 %", "data wait 1 %"):
        assert any(phrase in line for line in shown), phrase


def test_phrases_are_never_broken():
    assert fold(["loss 2.3", "lr a 1.0e-03", "9 tokens/s"], 24) == ["loss 2.3   lr a 1.0e-03", "9 tokens/s"]
    assert fold(["longer than that"], 4) == ["longer than that"]


@pytest.mark.parametrize(("seconds", "said"), [(9.4, "0:00:09"), (3599.6, "1:00:00"), (7509.0, "2:05:09"), (93_784.0, "1 d 2:03:04")])
def test_duration(seconds, said):
    assert duration(seconds) == said
