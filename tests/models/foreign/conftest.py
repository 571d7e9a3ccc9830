"""Tiny parts in the classes of transformers, and the forward pass of LLaVA stated once more: the layouts of the formats are made of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vlm.backbones.language import LANGUAGE

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGE = -200  # as LLaVA marks a picture among the ids
ROWS = 400


@dataclass
class Parts:
    """A vision tower, a projector and a language model, with the tokenizer.

    Attributes:
        vision: CLIPVisionModel or SiglipVisionModel.
        projector: Linear layers with GELU between them.
        language: A causal language model.
        tokenizer: Its tokenizer.
        first: Leave out the first token of the features.
        layer: Index into the hidden states.
    """

    vision: Any
    projector: nn.Module
    language: Any
    tokenizer: Any
    first: bool = True
    layer: int = -2

    @torch.no_grad()
    def logits(self, prompt: str, picture: Image.Image) -> torch.Tensor:
        """LLaVA's forward pass: the text between pictures is tokenized piece by piece (`tokenizer_image_token`), and pictures are put between the embeddings."""
        pixels = (torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        hidden = self.vision(pixels[None], output_hidden_states=True).hidden_states[self.layer]
        image = self.projector(hidden[:, int(self.first) :])
        table, pieces = self.language.get_input_embeddings(), []
        for i, text in enumerate(prompt.split("<image>")):
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            pieces += [image] * (i > 0) + [table(torch.tensor([ids], dtype=torch.long))]
        return self.language(inputs_embeds=torch.cat(pieces, dim=1)).logits[0]


def _random(module: nn.Module) -> Any:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


def tokenizer_of(name: str, rows: int = ROWS) -> Any:
    """The tiny tokenizer of a family, with `<image>`."""
    made = LANGUAGE[name].tokenizer(LANGUAGE[name], None)
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return made


@pytest.fixture
def parts() -> Callable[..., Parts]:
    """`parts("llama", layers=2)`: random parts, the same at every call."""

    def make(kind: str = "llama", *, layers: int = 2, vision: str = "clip", **sizes: Any) -> Parts:
        import transformers

        torch.manual_seed(0)
        size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
        config = {"clip": transformers.CLIPVisionConfig, "siglip": transformers.SiglipVisionConfig}[vision](**size)
        tower = transformers.AutoModel.from_config(config)
        text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
        text |= {"vocab_size": ROWS, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None} | sizes
        language = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **text))
        stack = [nn.Linear(16, 32)]
        for _ in range(1, layers):
            stack += [nn.GELU(), nn.Linear(32, 32)]
        return Parts(_random(tower), _random(nn.Sequential(*stack) if layers > 1 else stack[0]), _random(language), tokenizer_of("tiny-llama"))

    return make


@pytest.fixture
def square() -> Image.Image:
    """A picture of the size of a tile, so that no resize takes part."""
    noise = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return Image.fromarray(noise.numpy())


@pytest.fixture
def ours() -> Callable[..., torch.Tensor]:
    """`ours(model, question, picture)`: the logits of a prompt without its image tokens, and the prompt."""

    @torch.no_grad()
    def logits(model: Any, question: str, picture: Image.Image) -> tuple[torch.Tensor, str]:
        from vlm.messages import Message
        from vlm.models.generate import Prompt, embed_prompts
        from vlm.types import Documents

        message = Message("user", question)
        embeds = embed_prompts(model, [Prompt((message,), (picture,))], 1)[0]
        hidden = model.language(embeds, Documents.one_per_row(1, embeds.shape[1]))
        return model.language.logits(hidden[0]), "".join(span.text for span in model.template.render([message]))

    return logits


def save_weights(tensors: dict[str, torch.Tensor], folder: Path, values: dict[str, Any], tokenizer: Any, *, name: str = "model.safetensors") -> Path:
    """A folder with weights, config and tokenizer."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}
    if name.endswith(".safetensors"):
        save_file(tensors, folder / name, metadata={"format": "pt"})
    else:
        torch.save(tensors, folder / name)
    (folder / "config.json").write_text(json.dumps(values, default=str), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture
def save() -> Callable[..., Path]:
    """`save(tensors, folder, config, tokenizer)`."""
    return save_weights
