"""A model whose space is color: pictures by their mean RGB, texts by the color words in them."""

import numpy as np
import torch

from vlm.evaluate.embedder import NamedEmbedder

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "cyan": (0, 255, 255), "magenta": (255, 0, 255)}


def of_images(images):
    return torch.tensor(np.stack([np.asarray(image, dtype=np.float32).mean((0, 1)) for image in images])) + 1


def of_texts(texts):
    return torch.tensor([[1.0 + sum(rgb[i] for word, rgb in COLORS.items() if word in text) for i in range(3)] for text in texts])


def color_embedder(name="color"):
    return NamedEmbedder(name, of_images, of_texts)


def blind_embedder(name="blind"):
    return NamedEmbedder(name, lambda images: torch.ones(len(images), 3), lambda texts: torch.ones(len(texts), 3))
