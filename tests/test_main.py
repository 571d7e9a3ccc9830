import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import vlm
from vlm.__main__ import COMMANDS, main
from vlm.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def command(monkeypatch):
    """Replace `vlm list` by a function."""

    def replace(function):
        module = types.ModuleType("vlm.commands.list")
        module.main = function
        monkeypatch.setitem(sys.modules, "vlm.commands.list", module)

    return replace


def test_help_names_every_command(capsys):
    assert main([]) == main(["--help"]) == main(["-h"]) == 0
    said = capsys.readouterr().out
    for name, sentence in COMMANDS.items():
        assert name in said and sentence in said


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vlm {vlm.__version__}\n"


def test_unknown_command_gets_the_nearest(capsys):
    assert main(["pretrian"]) == 2
    assert capsys.readouterr().err.startswith("vlm pretrian: No command named 'pretrian'. Did you mean 'pretrain'")


def test_every_command_exists():
    for name in COMMANDS:
        assert (ROOT / "vlm" / "commands" / f"{name}.py").is_file()


def refuse(_):
    raise ConfigError("too much of it. Take less.")


def test_error_of_the_user_is_one_line_and_exit_code_2(command, capsys):
    command(refuse)
    assert main(["list"]) == 2
    assert capsys.readouterr().err == "vlm list: too much of it. Take less.\n"


@pytest.mark.parametrize(("name", "flag"), [("list", "--model.vision-source"), ("evaluate", "--vision-source"), ("chat", "--vision-source")])
def test_errors_of_towers_name_the_flag_that_the_command_has(name, flag, monkeypatch, capsys):
    def fail(_):
        raise ConfigError("Name a folder with --model.vision-source. Set --model.lora.vision.rank.")

    monkeypatch.setitem(sys.modules, f"vlm.commands.{name}", types.SimpleNamespace(main=fail))
    assert main([name]) == 2
    assert capsys.readouterr().err == f"vlm {name}: Name a folder with {flag}. Set --model.lora.vision.rank.\n"


def test_debug_shows_the_traceback(command):
    command(refuse)
    with pytest.raises(ConfigError):
        main(["list", "--debug"])


def test_bug_shows_its_traceback(command):
    def fail(_):
        raise KeyError("bug")

    command(fail)
    with pytest.raises(KeyError):
        main(["list"])


def test_interruption_is_exit_code_130(command, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    command(interrupt)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "vlm list: interrupted\n"


def test_hub_warnings_are_not_shown():
    code = (
        "from vlm.__main__ import main; main(['list', 'presets']); import huggingface_hub, logging; print(logging.getLogger('huggingface_hub').level)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_VERBOSITY"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == str(logging.ERROR)


def test_what_libraries_do_at_their_first_start_is_not_said(command, capsys):
    command(lambda _: logging.getLogger("matplotlib.font_manager").info("generated new fontManager"))
    assert main(["list"]) == 0
    assert "fontManager" not in capsys.readouterr().err
    assert not logging.getLogger("matplotlib.font_manager").isEnabledFor(logging.INFO)


def test_other_ranks_speak_only_after_the_first_had_its_time(command, capsys, monkeypatch):
    waited = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("vlm.__main__.time.sleep", waited.append)
    command(refuse)
    assert main(["list"]) == 2
    assert waited == [5.0]
    assert capsys.readouterr().err == "[rank 1] vlm list: too much of it. Take less.\n"


def test_module_is_the_command_and_a_closed_pipe_is_quiet():
    done = subprocess.run(
        f"{sys.executable} -m vlm list --json | head -c 1", shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120, executable="/bin/bash"
    )
    assert done.stdout == "{"
    assert done.stderr == ""
