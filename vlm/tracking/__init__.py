"""Where metrics go: the console, a JSONL file, Weights & Biases, TensorBoard; everywhere under the same keys. Knows numbers and pictures, not what they measure."""

from vlm.tracking.base import Shown, Tracker, Trackers, check_trackers
from vlm.tracking.console import Progress, counting
from vlm.tracking.jsonl import JSONL
from vlm.tracking.system import SystemMetrics
from vlm.tracking.tensorboard import TensorBoard
from vlm.tracking.weights_and_biases import WandB

__all__ = ["JSONL", "Progress", "Shown", "SystemMetrics", "TensorBoard", "Tracker", "Trackers", "WandB", "check_trackers", "counting"]
