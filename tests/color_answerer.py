"""A model that answers every question with the color of its last picture, and notes what it was asked."""

from collections import Counter

import numpy as np
import torch

from vlm.errors import DataFormatError
from vlm.evaluate.asking import Contender

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "gray": (120, 120, 120)}


def color_of(image):
    mean = np.asarray(image, dtype=float).mean((0, 1))
    return min(COLORS, key=lambda name: np.abs(mean - COLORS[name]).sum())


class ColorAnswerer:
    """Fails on a prompt with the word REFUSE, and on more prompts at once than fit."""

    def __init__(self, says=color_of, most=100):
        self.says, self.most, self.asked, self.batches = says, most, Counter(), []

    def answer(self, prompts, max_new_tokens):
        self.batches.append(len(prompts))
        if len(prompts) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if any("REFUSE" in prompt.messages[-1].text for prompt in prompts):
            raise DataFormatError("The prompt is too long.")
        self.asked.update(prompt.messages[-1].text for prompt in prompts)
        return [self.says(prompt.images[-1]) if prompt.images else "none" for prompt in prompts]

    def log_probs(self, prompts, answers):
        self.batches.append(len(prompts))
        return torch.tensor([[-1.0 - (len(answer) + prompt.messages[-1].text.count(answer)) for answer in answers] for prompt in prompts])

    def write(self, messages):
        return "".join(f"[{message.role}] {message.text} " for message in messages) + "[assistant]"


def contender(name="color", answerer=None, **identity):
    """A `Contender` that opens this answerer."""
    answerer = answerer or ColorAnswerer()
    return Contender(name, {"weights sha256": name, **identity}, lambda: answerer)
