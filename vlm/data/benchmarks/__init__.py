"""Pictures with class names or captions, for evaluations: readers of classification benchmarks by name."""

from vlm.data.benchmarks.base import BenchmarkSpec
from vlm.registry import Registry

BENCHMARKS: Registry[BenchmarkSpec] = Registry(__name__, kind="classification benchmark")
