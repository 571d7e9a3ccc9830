"""Counts of a server, in the text format that Prometheus reads (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping


class Metrics:
    """What has happened since the start; any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._responses: Counter[int] = Counter()
        self._sums: defaultdict[str, float] = defaultdict(int)

    def count_response(self, status: int) -> None:
        """One request has got its status."""
        with self._lock:
            self._responses[status] += 1

    def count_answer(self, prompt_tokens: int, answer_tokens: int) -> None:
        """One answer is complete."""
        with self._lock:
            self._sums["prompt_tokens"] += prompt_tokens
            self._sums["answer_tokens"] += answer_tokens

    def count_batch(self, rows: int, seconds: float) -> None:
        """One batch is answered."""
        with self._lock:
            self._sums["batches"] += 1
            self._sums["batch_rows"] += rows
            self._sums["batch_seconds"] += seconds

    @property
    def num_batches(self) -> int:
        """Batches that were answered."""
        return int(self._sums["batches"])

    def text(self, gauges: Mapping[str, int]) -> str:
        """All counts, and what is measured now.

        Args:
            gauges: Values of this moment by name.
        """
        with self._lock:
            lines = ["# TYPE vlm_responses_total counter"]
            lines += [f'vlm_responses_total{{status="{status}"}} {count}' for status, count in sorted(self._responses.items())]
            for name in ("prompt_tokens", "answer_tokens", "batches", "batch_rows", "batch_seconds"):
                lines += [f"# TYPE vlm_{name}_total counter", f"vlm_{name}_total {self._sums[name]}"]
        for name, value in gauges.items():
            lines += [f"# TYPE vlm_{name} gauge", f"vlm_{name} {value}"]
        return "\n".join(lines) + "\n"
