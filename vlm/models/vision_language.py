"""A vision backbone, a connector and a language model as one model: pixels and ids in, loss or hidden states out.

Knows no names, files or training; `vlm.models.build` assembles it from a config, `vlm.training.loop` trains it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vlm.backbones.language.base import HFCausalLM
from vlm.backbones.lora import LoRAOptions
from vlm.distributed.shard import is_sharded
from vlm.messages import ChatTemplate, Message
from vlm.models.losses import cross_entropy, cross_entropy_by_source, in_chunks
from vlm.models.splice import splice, touch
from vlm.types import ChatBatch, ImagePolicy, LossSum, TokensPerTile

PARTS = ("vision", "connector", "language")


class VisionLanguageModel(nn.Module):
    """Image features, mapped by a connector, in the places of the image tokens of a causal language model (LLaVA, arXiv:2304.08485)."""

    PARTS = PARTS

    vision: Any  # a VisionBackbone and a Connector, which are modules besides
    connector: Any
    language: HFCausalLM

    def __init__(self, vision: nn.Module, connector: nn.Module, language: HFCausalLM, *, tokens_per_tile: int, image_policy: ImagePolicy):
        """Join the parts; nothing is copied.

        Args:
            vision: A VisionBackbone.
            connector: A Connector between their widths.
            language: A LanguageModel.
            tokens_per_tile: Embeddings that the connector makes of one tile.
            image_policy: How pictures become tiles for this vision backbone.
        """
        super().__init__()
        self.vision, self.connector, self.language = vision, connector, language
        self.tokens_per_tile, self.image_policy = tokens_per_tile, image_policy
        self.tokens_per_image = TokensPerTile(tokens_per_tile)  # a pure function of the layout
        self.adapters: dict[str, LoRAOptions] = {}  # of the parts that have one
        self.quantized: dict[str, str] = {}  # fingerprints that the quantized parts had before
        self.altered = {"connector"}  # parts whose own weights are not those of their source, so that a checkpoint must hold them

    @property
    def template(self) -> ChatTemplate:
        """The chat template that the model was trained with."""
        return self.language.template

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def encode_images(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N K E"]:
        """Tiles as language-model embeddings. A frozen tower keeps no graph."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(self.vision)):
            features = self.vision(pixels)
        return self.connector(features.to(next(self.connector.parameters(), features).dtype))

    def embed(self, batch: ChatBatch) -> Float[Tensor, "B T E"]:
        """Text embeddings with the images spliced in."""
        embeds = self.language.embed(batch.ids)
        has_images = len(batch.pixels) > 0
        images = self.encode_images(batch.pixels) if has_images else embeds.new_zeros(0, self.tokens_per_tile, embeds.shape[-1])
        embeds = splice(embeds, batch.ids, images, image_token_id=self.language.image_token_id)
        if not has_images and self._waits_for_images():
            return touch(embeds, self.encode_images(self._blank_tile()))
        return embeds

    def _waits_for_images(self) -> bool:
        """True if other ranks, which may have images, need this one in the vision backbone and the connector: for its gradients, or its shares of weights."""
        return is_sharded(self) or (self.training and (is_trained(self.vision) or is_trained(self.connector)))

    def units(self) -> Sequence[nn.Module]:
        """The modules that are sharded one by one."""
        return (*self.vision.blocks(), self.connector, *self.language.blocks())

    def _blank_tile(self) -> UInt8[Tensor, "1 3 H W"]:
        size = self.image_policy.size
        return torch.zeros(1, 3, size, size, dtype=torch.uint8, device=self.device)

    def hidden(self, batch: ChatBatch) -> Float[Tensor, "B T E"]:
        """Final hidden states of every position."""
        return self.language(self.embed(batch), batch.documents)

    def forward(self, batch: ChatBatch) -> LossSum:
        """Next-token loss over the labelled positions; the head runs on those alone."""
        places, before = batch.targets
        targets = batch.labels.flatten()[places]  # [M]
        # in a message tree, the last token of the trunk predicts the first of each branch
        needed = before if batch.documents.prefix is None else before.unique()
        hidden = self.language(self.embed(batch), batch.documents, needed=needed)
        rows = hidden.flatten(0, 1)[before]  # [M, E]: rows are selected first, so that the head gets a contiguous matrix
        sources = None
        if batch.sources is not None:
            sources = batch.sources[torch.searchsorted(batch.documents.starts, places, right=True) - 1]
        number = len(batch.samples_by_source)

        def loss(rows: Tensor, targets: Tensor, sources: Tensor | None) -> LossSum:
            logits = self.language.logits(rows)
            return cross_entropy(logits, targets) if sources is None else cross_entropy_by_source(logits, targets, sources, number)

        return in_chunks(loss, rows, targets, sources, vocabulary=self.language.num_logits)

    def chat(
        self,
        images: Any,
        text: str,
        *,
        history: Sequence[Message] = (),
        earlier_images: Any = (),
        stream: bool = False,
        **sampling: Any,
    ) -> str | Iterator[str]:
        """Answer a question about pictures; `vlm.infer.chat.Conversation` keeps history and pictures by itself.

        Args:
            images: Pictures of this question, one, several or none: pictures of PIL, paths, URLs, the bytes of files, uint8 arrays
                (`vlm.data.given_picture.as_picture`).
            text: The question; `<image>` marks where a picture goes, without it the pictures come first.
            history: Earlier turns.
            earlier_images: Their pictures, in the order of their placeholders.
            stream: True to get the answer piece by piece.
            sampling: Fields of `vlm.models.sampling.Sampling`.

        Raises:
            ConfigError: If sampling settings are out of range.
            FetchError, DataFormatError: If a picture cannot be had, placeholders and pictures disagree, or the context is too short.
        """
        from vlm.models import generate

        prompt = generate.ask(images, text, history=history, earlier_images=earlier_images)
        drawn = generate.Sampling(**sampling)
        return generate.stream(self, prompt, drawn) if stream else generate.generate(self, [prompt], drawn)[0]

    def generate_batch(self, prompts: Sequence[Any], **sampling: Any) -> list[str]:
        """Answer several prompts in one batch, each as it would be answered alone.

        Args:
            prompts: Questions without a picture, pairs `(pictures, question)`, or conversations (`vlm.models.generate.Prompt`); mixed at will.
            sampling: Fields of `vlm.models.sampling.Sampling`.

        Raises:
            ConfigError, FetchError, DataFormatError: See `chat`.
        """
        from vlm.models import generate

        return generate.generate(self, generate.as_prompts(prompts), generate.Sampling(**sampling))

    def score(self, prompt: Any, answers: Sequence[str]) -> list[Any]:
        """Log-probabilities of given answers (yes and no, letters, captions), each as a whole and by token: `vlm.models.score.AnswerScore`.

        Args:
            prompt: A question, a pair `(pictures, question)`, or a conversation; see `generate_batch`.
            answers: The answers; what several begin with alike is computed once.

        Raises:
            FetchError, DataFormatError: If there is no answer, or see `chat`.
        """
        from vlm.models import generate, score

        return score.score(self, generate.as_prompt(prompt), answers)

    def check_image_use(self, question: str = "Describe the image.") -> Any:
        """Whether pictures reach the answer, by a black and a white one: a `vlm.models.image_use.ImageUse`.

        Args:
            question: What is asked about them.

        Raises:
            CheckpointError: If the two lead to the same scores: pictures get lost on their way.
        """
        from vlm.models.image_use import image_use

        return image_use(self, question)

    def train(self, mode: bool = True) -> "VisionLanguageModel":
        """Training mode for the parts that are trained; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in PARTS:
            module = getattr(self, part)
            module.train(mode and is_trained(module))
        return self


def is_trained(module: nn.Module) -> bool:
    """True if any weight of the module is trained."""
    return any(p.requires_grad for p in module.parameters())
