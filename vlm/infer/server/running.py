"""The server's process: uvicorn, until a signal, and the end of what is open then. Knows neither routes nor models."""

import asyncio
import socket
from typing import Any

import uvicorn

from vlm.infer.server.service import Service

SECONDS_TO_TELL = 5  # that the server ends, to those who are not answered in time


def run_until_signal(app: Any, service: Service, listening: socket.socket, *, seconds_to_finish: float = 30) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is open; when it returns, the service is closed.

    Args:
        app: What `create_app` gave.
        service: Of the app.
        listening: Where clients connect.
        seconds_to_finish: Then, or at a second signal, those who still wait are told that the server ends.
    """
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=round(seconds_to_finish) + SECONDS_TO_TELL
    )
    try:
        _Server(config, service, seconds_to_finish).run(sockets=[listening])
    finally:
        service.close()  # a thread that still computes when the interpreter ends would abort it


class _Server(uvicorn.Server):
    """uvicorn's own way to end early cuts requests off: it is never taken, because clients want to hear what happens."""

    def __init__(self, config: uvicorn.Config, service: Service, seconds_to_finish: float):
        super().__init__(config)
        self.service, self.seconds_to_finish, self.hurried = service, seconds_to_finish, False

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.should_exit:
            self.hurried = True
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        giving_up = asyncio.create_task(self._give_up())
        await super().shutdown(sockets)
        giving_up.cancel()

    async def _give_up(self) -> None:
        """Signals come between any two instructions, so they only leave a mark that is looked at here."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.seconds_to_finish
        while not self.hurried and loop.time() < deadline:
            await asyncio.sleep(0.05)
        self.service.give_up()
