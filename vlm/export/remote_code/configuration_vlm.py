"""Config of a vision-language model that was composed and trained with vlm: one or several vision towers, a connector, a language model."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig


class VLMConfig(PretrainedConfig):
    """Sizes of every part.

    Attributes:
        towers: For each vision tower: `kind` (transformers, timm, efficientnet-lite0), what its code needs, `mean` and `std` of normalization.
        connector: `shuffle` (side of the squares of patches that are joined), `widths` of the layers, `activation`, `standardize`.
        text_config: Config of the language model.
        image_token_id: Id that stands for one image embedding.
    """

    model_type = "vlm"
    sub_configs = {"text_config": AutoConfig}  # type: ignore[bad-override]  # noqa: RUF012

    def __init__(
        self,
        towers: list[dict[str, Any]] | None = None,
        connector: dict[str, Any] | None = None,
        text_config: Any = None,
        image_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        """Keep the sizes; without any, the class is of no use but for transformers' own checks."""
        self.towers, self.connector, self.image_token_id = towers or [], connector or {}, image_token_id
        text: dict[str, Any] = dict(text_config) if isinstance(text_config, dict) else {}
        self.text_config: Any = AutoConfig.for_model(**{"model_type": "llama"} | text) if not hasattr(text_config, "to_dict") else text_config
        super().__init__(**kwargs)
