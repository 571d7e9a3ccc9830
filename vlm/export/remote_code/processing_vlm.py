"""Prompts and pictures to ids and tiles: every `<image>` becomes as many image tokens as a picture has embeddings."""

from typing import Any

from transformers import BatchFeature, ProcessorMixin

from .image_processing_vlm import flat


class VLMProcessor(ProcessorMixin):
    """Image processor and tokenizer; the chat template is in `chat_template.jinja`, and writes all special tokens."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        tokens_per_image: int = 1,
        separator: str = "",
        image_place: str = "text",
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the parts.

        Args:
            image_processor: A VLMImageProcessor.
            tokenizer: The tokenizer, with `<image>` among its tokens.
            tokens_per_image: Embeddings of one picture.
            separator: What the chat template writes between pieces that are tokenized by themselves; empty for none.
            image_place: `text`, where `<image>` stands, or `first-token`, behind the first token of the prompt.
            chat_template: Jinja; None for the tokenizer's.
            kwargs: Of transformers.
        """
        self.tokens_per_image, self.image_token = tokens_per_image, "<image>"
        self.separator, self.image_place = separator, image_place
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images: Any = None, text: Any = None, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """`input_ids`, `attention_mask` and, of pictures, `pixel_values`; `padding=True` for prompts of different length.

        Raises:
            ValueError: If `<image>` and pictures disagree in number.
        """
        texts = [text] if isinstance(text, str) else list(text or ())
        pictures = [] if images is None else flat(images)
        wanted = sum(one.count(self.image_token) for one in texts)
        if texts and wanted != len(pictures):
            raise ValueError(f"the prompts have {wanted} {self.image_token} for {len(pictures)} pictures; give one picture for each")
        data: dict[str, Any] = {}
        if texts:
            padding = kwargs.get("padding", kwargs.get("text_kwargs", {}).get("padding", False))
            data |= self.tokenizer.pad({"input_ids": [self._ids(one) for one in texts]}, padding=padding, return_attention_mask=True)
        if pictures:
            data["pixel_values"] = self.image_processor(pictures)["pixel_values"]
        return BatchFeature(data, tensor_type=return_tensors)

    def _ids(self, text: str) -> list[int]:
        """Ids of a prompt, each picture expanded."""
        count = text.count(self.image_token)
        at_once = self.image_place == "first-token"
        text = text.replace(self.image_token, "" if at_once else self.image_token * self.tokens_per_image)
        pieces = text.split(self.separator) if self.separator else [text]
        ids = [token for piece in pieces if piece for token in self.tokenizer(piece, add_special_tokens=False)["input_ids"]]
        image = [self.tokenizer.convert_tokens_to_ids(self.image_token)] * (count * self.tokens_per_image)
        return ids[:1] + image + ids[1:] if at_once else ids
