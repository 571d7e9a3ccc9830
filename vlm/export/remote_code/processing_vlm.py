"""Prompts and pictures to ids and tiles: every `<image>` becomes as many image tokens as a picture has embeddings."""

from typing import Any

from transformers import BatchFeature, ProcessorMixin

from .image_processing_vlm import flat


class VLMProcessor(ProcessorMixin):
    """Image processor and tokenizer; the chat template is in `chat_template.jinja`."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, tokens_per_image: int = 1, chat_template: str | None = None, **kwargs: Any
    ) -> None:
        """Keep the parts.

        Args:
            image_processor: A VLMImageProcessor.
            tokenizer: The tokenizer, with `<image>` among its tokens.
            tokens_per_image: Embeddings of one picture.
            chat_template: Jinja; None for the tokenizer's.
            kwargs: Of transformers.
        """
        self.tokens_per_image, self.image_token = tokens_per_image, "<image>"
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images: Any = None, text: Any = None, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """`input_ids`, `attention_mask` and, of pictures, `pixel_values`.

        Raises:
            ValueError: If `<image>` and pictures disagree in number.
        """
        texts = [text] if isinstance(text, str) else list(text or ())
        pictures = [] if images is None else flat(images)
        wanted = sum(one.count(self.image_token) for one in texts)
        if texts and wanted != len(pictures):
            raise ValueError(f"the prompts have {wanted} {self.image_token} for {len(pictures)} pictures; give one picture for each")
        options = {name: kwargs[name] for name in ("padding", "truncation", "max_length", "padding_side") if name in kwargs}
        options |= kwargs.get("text_kwargs", {})
        expanded = [one.replace(self.image_token, self.image_token * self.tokens_per_image) for one in texts]
        data = dict(self.tokenizer(expanded, add_special_tokens=False, **options)) if texts else {}
        data.pop("token_type_ids", None)
        if pictures:
            data["pixel_values"] = self.image_processor(pictures)["pixel_values"]
        return BatchFeature(data, tensor_type=return_tensors)
