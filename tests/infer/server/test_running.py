"""How a server ends: what is open is finished, and what takes too long is told, at a second signal at once."""

import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import uvicorn
from tiny_server import wait_until

from vlm.infer.server import running
from vlm.infer.server.app import create_app
from vlm.infer.server.limits import Limits
from vlm.infer.server.pictures import fetch_from
from vlm.infer.server.service import Service
from vlm.models.sampling import Sampling

RUN = uvicorn.Server.run
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "What color?"}], "max_tokens": 400}


@pytest.mark.parametrize(("seconds", "signals"), [(0.3, 1), (100.0, 2)])
def test_who_is_not_answered_in_time_is_told_that_the_server_ends(endless, pace, monkeypatch, caplog, seconds, signals):
    servers = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: servers.append(self) or RUN(self, sockets))
    service = Service(endless, "tiny", limits=Limits(), default=Sampling(), fetch=fetch_from(()))
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(2) as pool:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/chat/completions"
        thread = threading.Thread(
            target=running.run_until_signal, args=(create_app(service), service, listening), kwargs={"seconds_to_finish": seconds}
        )
        thread.start()
        whole, streamed = (pool.submit(httpx.post, url, json=ASKED | {"stream": stream}, timeout=120) for stream in (False, True))
        wait_until(lambda: service.batcher.num_running >= 1 and service.num_open == 2)
        pace.allow(20)
        for _ in range(signals):
            servers[0].handle_exit(signal.SIGINT, None)
        start = time.monotonic()
        assert (whole.result().status_code, whole.result().json()["error"]["code"]) == (503, "shutting_down")
        assert '"code": "shutting_down"' in streamed.result().text or streamed.result().json()["error"]["code"] == "shutting_down"
        assert time.monotonic() - start < 60  # and not 100
        pace.allow(1)
        thread.join(60)
    assert not thread.is_alive()
    assert not service.batcher._thread.is_alive()
    assert "Traceback" not in caplog.text
