"""LLM2CLIP on a tiny checkpoint in the published layout, beside the forward pass of its paper written out again."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT
from vlm.backbones.text.base import build_text
from vlm.backbones.text.llm2clip import llm2clip_state
from vlm.errors import CheckpointError
from vlm.types import TextEncoder

LANGUAGE = Path(__file__).parents[2] / "data" / "llm2vec_golden" / "base"
WIDTH, JOINT, BLOCKS = 64, 24, 4
TEXTS = ["a cat", "two children play football in the park", ""]


def adapter_tensors(*, dropout: bool = True, bias: bool = True) -> dict[str, Tensor]:
    """As `TextProj` of LLM2CLIP names them; the second linear layer is number 3 behind a dropout and 2 without one."""
    second = 3 if dropout else 2
    shapes = {}
    for block in range(BLOCKS):
        shapes |= {f"{block}.ln.weight": (WIDTH,), f"{block}.ln.bias": (WIDTH,)}
        shapes |= {f"{block}.fn.0.weight": (2 * WIDTH, WIDTH), f"{block}.fn.0.bias": (2 * WIDTH,)}
        shapes |= {f"{block}.fn.{second}.weight": (WIDTH, 2 * WIDTH), f"{block}.fn.{second}.bias": (WIDTH,)}
    shapes |= {f"{BLOCKS}.weight": (WIDTH,), f"{BLOCKS}.bias": (WIDTH,), f"{BLOCKS + 1}.weight": (JOINT, WIDTH)}
    shapes |= {f"{BLOCKS + 1}.bias": (JOINT,)} if bias else {}
    return {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}


@pytest.fixture
def checkpoint(tmp_path: Path):
    """`checkpoint(adapter)`: a folder as the CLIP half's repository."""

    def save(adapter: dict[str, Tensor], **others: Tensor) -> Path:
        image = {"vision_model.embeddings.class_embedding": torch.ones(8), "visual_projection.weight": torch.ones(JOINT, 8)}
        state = {f"text_adapter.adaptor.{key}": tensor for key, tensor in adapter.items()}
        save_file(state | image | {"logit_scale": torch.tensor(4.6)} | others, tmp_path / "model.safetensors")
        return tmp_path

    return save


def projected(adapter: dict[str, Tensor], vectors: Tensor, *, dropout: bool) -> Tensor:
    second = 3 if dropout else 2
    x = vectors / vectors.norm(dim=1, keepdim=True)
    for block in range(BLOCKS):
        own = {key.removeprefix(f"{block}."): tensor for key, tensor in adapter.items() if key.startswith(f"{block}.")}
        inner = F.layer_norm(x, (WIDTH,), own["ln.weight"], own["ln.bias"]) @ own["fn.0.weight"].T + own["fn.0.bias"]
        x = x + F.gelu(inner) @ own[f"fn.{second}.weight"].T + own[f"fn.{second}.bias"]
    x = F.layer_norm(x, (WIDTH,), adapter[f"{BLOCKS}.weight"], adapter[f"{BLOCKS}.bias"])
    return x @ adapter[f"{BLOCKS + 1}.weight"].T + adapter.get(f"{BLOCKS + 1}.bias", torch.zeros(JOINT))


def pooled(texts: list[str]) -> Tensor:
    """The mean over what follows the user's header, by transformers alone, one text at a time."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(LANGUAGE)
    model = transformers.AutoModel.from_pretrained(LANGUAGE).eval()
    rows = []
    for text in texts:
        ids = tokenizer(f"<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>", return_tensors="pt").input_ids
        tail = len(tokenizer(f"{text}<|eot_id|>", add_special_tokens=False).input_ids)
        rows.append(model(input_ids=ids, is_causal=False).last_hidden_state[0, -tail:].mean(0))
    return torch.stack(rows)


@pytest.mark.parametrize(("dropout", "bias"), [(True, True), (False, False)])
@torch.no_grad()
def test_vectors_are_the_adapter_of_the_pooled_language_model(checkpoint: Any, dropout: bool, bias: bool):
    adapter = adapter_tensors(dropout=dropout, bias=bias)
    spec = TEXT[f"llm2clip:{checkpoint(adapter)}+{LANGUAGE}"]
    encoder = build_text(spec, Load(source=spec.source))
    vectors = encoder.encode(TEXTS)
    assert isinstance(encoder, TextEncoder)
    assert vectors.shape == (3, spec.width) == (3, encoder.width) == (3, JOINT)
    torch.testing.assert_close(vectors, projected(adapter, pooled(TEXTS), dropout=dropout), rtol=0, atol=1e-5)
    assert vectors.std(0).mean() > 0.05


def test_registered_entry_refuses_an_adapter_of_another_width(checkpoint: Any):
    spec = TEXT["llm2clip-b16-224-text"]
    with pytest.raises(CheckpointError, match=r"maps 64 values to 24, expected 4096 .* to 1280"):
        spec.build(spec, Load(source=f"{checkpoint(adapter_tensors())}+{LANGUAGE}"))


@pytest.mark.parametrize("key", ["2.fn.0.weight", "5.weight", "0.ln.bias", "4.weight"])
def test_missing_tensor_of_the_adapter_is_refused(checkpoint: Any, key: str):
    adapter = adapter_tensors()
    del adapter[key]
    with pytest.raises(CheckpointError, match=r"does not fit: .*Missing key|has no text adapter"):
        TEXT[f"llm2clip:{checkpoint(adapter)}+{LANGUAGE}"]


def test_tensor_too_many_is_refused(checkpoint: Any):
    with pytest.raises(CheckpointError, match=r"does not fit: .*Unexpected key"):
        TEXT[f"llm2clip:{checkpoint(adapter_tensors() | {'0.scale': torch.ones(1)})}+{LANGUAGE}"]
    with pytest.raises(CheckpointError, match=r"no LLM2CLIP checkpoint: it has 1 other tensors, among them text_model\.x"):
        llm2clip_state(checkpoint(adapter_tensors(), **{"text_model.x": torch.ones(1)}))


def test_images_half_alone_is_said_to_have_no_adapter(checkpoint: Any):
    with pytest.raises(CheckpointError, match="has no text adapter"):
        TEXT[f"llm2clip:{checkpoint({})}+{LANGUAGE}"]


def test_one_source_is_too_few(checkpoint: Any):
    with pytest.raises(CheckpointError, match=r"needs two sources, '<CLIP half>\+<language model>'"):
        TEXT[f"llm2clip:{checkpoint(adapter_tensors())}"]
