"""`vlm serve` as a process: a trained run is served, and ends gracefully when it is told to."""

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

import vlm
from vlm.__main__ import main


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    run_dir = vlm.train(tiny("finetune", max_steps=1))
    monkeypatch.chdir(tmp_path)
    return run_dir


def test_a_run_is_served_by_its_name_until_told_to_end(run):
    command = [sys.executable, "-m", "vlm", "serve", "tiny", "--port", "0", "--precision", "fp32", "--max-new-tokens", "60"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "VLM_API_KEY": "secret"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        said = server.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", said)[0]
        assert said.startswith(f"{run.name}: chat at {url}/")
        head = {"authorization": "Bearer secret"}
        body = {"model": run.name, "messages": [{"role": "user", "content": "What color?"}], "stream": True}
        assert httpx.get(f"{url}/v1/models", timeout=60).status_code == 401
        assert httpx.get(f"{url}/health", headers={"host": "a.org"}, timeout=60).status_code == 200  # a strange page has no key
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=head, timeout=60) as answer:
            lines = answer.iter_lines()
            assert '"role": "assistant"' in next(lines)
            server.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"  # what was open is finished
        assert server.wait(30) in (0, -signal.SIGTERM)
        assert "Traceback" not in server.stderr.read()


def test_a_second_ctrl_c_ends_it_at_once_and_tells_who_waits(run):
    command = [sys.executable, "-m", "vlm", "serve", "tiny", "--port", "0", "--precision", "fp32", "--max-new-tokens", "400"]
    command += ["--trusted-host", "chat.example.org"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "VLM_API_KEY": ""}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        url = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())[0]
        known, strange = (httpx.get(f"{url}/health", headers={"host": host}, timeout=60) for host in ("chat.example.org", "a.org"))
        assert (known.status_code, strange.status_code) == (200, 421)
        assert strange.json()["error"]["message"].endswith("Ask it at localhost or 127.0.0.1, or start the server with --trusted-host a.org.")
        body = {"model": run.name, "messages": [{"role": "user", "content": "What color?"}], "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.send_signal(signal.SIGINT)
            server.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]" or '"shutting_down"' in rest[-1]
        assert server.wait(30) == 130
        assert server.stderr.read() == "vlm serve: interrupted\n"


def test_a_model_of_the_hub_has_its_id_for_a_name(tmp_path, monkeypatch):
    from vlm.commands.serve import Arguments, _name

    monkeypatch.chdir(tmp_path)
    snapshot, run, kept = tmp_path / "snapshots" / "0123abcd", tmp_path / "runs" / "a+b+x1" / "checkpoints" / "step-000001", tmp_path / "kept"
    for folder, name, known in ((snapshot, "me/cat@v2", "me/cat@v2"), (run, "a", "a+b+x1"), (kept, "kept/", "kept")):
        folder.mkdir(parents=True)
        monkeypatch.setattr("vlm.models.checkpoint.find_checkpoint", lambda *_, folder=folder, **__: folder)
        assert _name(Arguments(name)) == known
        assert _name(Arguments(name, name="own")) == "own"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "There is no run that begins with 'nope'"),
        (["clip-b32-224"], "There is no run that begins with 'clip-b32-224'"),  # encoders do not answer, and are not loaded to say so
        (["tiny", "--port", "70000"], "--port is 70000"),
        (["tiny", "--host", "192.0.2.1"], "Cannot listen at 192.0.2.1"),
        (["tiny", "--max-batch", "0"], "--max-batch is 0; it must be at least 1"),
        (["tiny", "--temperature", "-1"], "temperature is -1.0"),
        (["tiny", "--timeout", "nan"], "--timeout is nan"),
        (["tiny", "--trusted-host", "https://a.org"], "--trusted-host is 'https://a.org', which is no host's name. Leave out scheme, port and path"),
        (["tiny", "--allow-host", "a.org:443"], "--allow-host is 'a.org:443', which is no host's name"),
    ],
)
def test_what_cannot_be_served_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--port", "0", *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said


def test_a_port_in_use_is_noticed_before_the_model_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "nope", "--port", str(taken.getsockname()[1])]) == 2
    assert re.search(r"Cannot listen at 127.0.0.1 port \d+: Address already in use. Choose another --host or --port", capsys.readouterr().err)


def test_missing_packages_are_named_with_the_line_that_installs_them(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve", "nope"]) == 2
    assert 'pip install "vlm[serve]"' in capsys.readouterr().err


def test_an_open_server_without_a_key_is_warned_of(monkeypatch, caplog, capsys):
    from vlm.commands.serve import _say

    for host, has_key, warned in (("127.0.0.1", False, False), ("0.0.0.0", True, False), ("0.0.0.0", False, True)):
        caplog.clear()
        with socket.create_server((host, 0)) as listening:
            _say("tiny", listening, has_key=has_key)
        assert ("asks for no key" in caplog.text) is warned
