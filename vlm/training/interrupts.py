"""Signals that ask a run to end: schedulers send SIGTERM (or SIGUSR1, if told to) some time before they kill. Knows nothing of training."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def stop_signals() -> Iterator[Callable[[], str]]:
    """A function that names the signal that has come, or nothing; the same signal a second time does what it did before.

    Outside of the main thread, where Python allows no handlers, no signal is ever seen.
    """
    received: list[str] = []
    before: dict[int, Any] = {}

    def remember(number: int, _: Any) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        before |= {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield lambda: received[0] if received else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
