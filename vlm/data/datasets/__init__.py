"""The datasets by name."""

from vlm.data.datasets.base import DatasetSpec
from vlm.registry import Registry

DATASETS: Registry[DatasetSpec] = Registry(__name__, kind="dataset")
