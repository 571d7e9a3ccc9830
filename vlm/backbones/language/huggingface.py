"""Any causal language model that transformers knows, by hub id or folder: `hf:<id or folder>`. Its sizes come from its own config.json.

What a config cannot say has to be said by the user: the chat template (--model.template). Licence and paper are on the model's page.
"""

from typing import Any

from vlm.backbones.language.base import LanguageSpec, auto_tokenizer, causal_lm
from vlm.backbones.loading import read_config
from vlm.errors import CheckpointError

ABOUT_THE_FILE = {"architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "auto_map"}


def from_config_file(source: str) -> LanguageSpec:
    """The spec that a `config.json` implies; reads that file when called, from the folder or the hub.

    Raises:
        CheckpointError: If there is no such file, or it sizes no text model.
    """
    import transformers

    config = read_config(transformers.AutoConfig, source)
    values: dict[str, Any] = {key: value for key, value in config.to_dict().items() if key not in ABOUT_THE_FILE}
    sizes = [size for key in ("hidden_size", "vocab_size", "max_position_embeddings") if isinstance(size := values.get(key), int)]
    if len(sizes) < 3:
        raise CheckpointError(
            f"The config of {source!r} has no hidden_size, vocab_size and max_position_embeddings: it is not that of a language model."
        )
    width, vocab_size, max_length = sizes
    return LanguageSpec(
        build=causal_lm,
        tokenizer=auto_tokenizer,
        source=source,
        template=None,
        architecture=values,
        width=width,
        vocab_size=vocab_size,
        max_length=max_length,
        num_parameters=None,
        license="see the model's page",
        paper="",
        lora_targets="all-linear",
    )


OPEN_SPECS = {"hf:<id or folder>": from_config_file}
