"""Benchmarks that ask a model about pictures, by name: readers of their official files."""

from vlm.data.questions.base import QuestionSpec
from vlm.registry import Registry

QUESTIONS: Registry[QuestionSpec] = Registry(__name__, kind="benchmark of questions")
