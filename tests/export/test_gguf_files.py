"""GGUF files against independent readers: transformers' own for the language model, and a restatement of llama.cpp's LLaVA graph for mmproj."""

import pytest
import torch
from torch.nn import functional as F

from vlm.errors import CheckpointError, ConfigError
from vlm.export import gguf_files
from vlm.export.gguf_files import export_gguf, interleaved
from vlm.types import Documents

gguf = pytest.importorskip("gguf")


def fields(path) -> dict:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def tensors(path) -> dict[str, torch.Tensor]:
    return {tensor.name: torch.tensor(tensor.data).float() for tensor in gguf.GGUFReader(path).tensors}


@torch.no_grad()
def own_logits(model, ids):
    return model.language.logits(model.language(model.language.embed(ids), Documents.one_per_row(*ids.shape))[0])


@pytest.mark.parametrize(("language", "length"), [("tiny-llama", 20), ("tiny-mistral", 6), ("tiny-qwen2", 20), ("tiny-phi3", 20)])
def test_language_model_that_transformers_reads_has_our_logits(answerer, tmp_path, language, length):
    """Its reader turns rows of queries and keys back, renames, and builds the config from the keys."""
    import transformers

    model = answerer("tiny-clip", language, rank=4)
    done = export_gguf(model, tmp_path / "out", name="x", dtype="f32")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file=done.files[0].name).eval()
    ids = torch.arange(length)[None] + 40
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits[0], own_logits(model, ids), atol=1e-5, rtol=1e-5)
    assert done.rounding == 0


def test_phi_keeps_the_bias_of_its_head(answerer, tmp_path):
    model = answerer("tiny-clip", "tiny-phi")
    torch.nn.init.normal_(model.language.model.lm_head.bias)
    done = export_gguf(model, tmp_path / "out", name="x", dtype="f32")
    assert torch.equal(tensors(done.files[0])["output.bias"], model.language.model.lm_head.bias)
    assert fields(done.files[0])["phi2.rope.dimension_count"] == 4  # half of a head of 8


def test_keys_of_the_language_model(answerer, tmp_path):
    model = answerer("tiny-clip", "tiny-qwen3")
    seen = fields(export_gguf(model, tmp_path / "out", name="x").files[0])
    assert seen["general.architecture"] == "qwen3"
    assert [seen[f"qwen3.{key}"] for key in ("block_count", "attention.head_count", "attention.head_count_kv", "attention.key_length")] == [
        2,
        4,
        2,
        16,
    ]
    assert len(seen["tokenizer.ggml.tokens"]) == 384  # as many as the table has rows: <image> is none of llama.cpp's tokens
    assert (seen["tokenizer.ggml.model"], seen["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert seen["tokenizer.ggml.add_bos_token"] is False
    assert seen["tokenizer.ggml.tokens"][seen["tokenizer.ggml.eot_token_id"]] == "<|im_end|>"
    assert "<think>" in seen["tokenizer.chat_template"]


def llava_graph(path, images: torch.Tensor) -> torch.Tensor:
    """llama.cpp's clip_graph_llava::build for one feature layer (tools/mtmd/models/llava.cpp), the class token in front as in CLIP."""
    keys, t = fields(path), tensors(path)
    width, heads, eps = (keys[f"clip.vision.{key}"] for key in ("embedding_length", "attention.head_count", "attention.layer_norm_epsilon"))
    gelu = (lambda x: F.gelu(x, approximate="tanh")) if keys["clip.use_gelu"] else (lambda x: x * torch.sigmoid(1.702 * x))

    def norm(x, name):
        return F.layer_norm(x, (width,), t[f"{name}.weight"], t[f"{name}.bias"], eps)

    def linear(x, name):
        return F.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])

    x = F.conv2d(images, t["v.patch_embd.weight"], t.get("v.patch_embd.bias"), stride=keys["clip.vision.patch_size"]).flatten(2).transpose(1, 2)
    if "v.class_embd" in t:
        x = torch.cat([t["v.class_embd"].expand(len(x), 1, -1), x], dim=1)
    x = x + t["v.position_embd.weight"]
    if "v.pre_ln.weight" in t:
        x = norm(x, "v.pre_ln")
    for i in range(*keys["clip.vision.feature_layer"]):
        h = norm(x, f"v.blk.{i}.ln1")
        q, k, v = (linear(h, f"v.blk.{i}.attn_{part}").unflatten(-1, (heads, -1)).transpose(1, 2) for part in "qkv")
        x = x + linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), f"v.blk.{i}.attn_out")
        x = x + linear(gelu(linear(norm(x, f"v.blk.{i}.ln2"), f"v.blk.{i}.ffn_up")), f"v.blk.{i}.ffn_down")
    assert "v.post_ln.weight" not in t  # it would be applied
    x = x[:, 1:] if "v.class_embd" in t else x
    return linear(F.gelu(linear(x, "mm.0"), approximate="tanh"), "mm.2")


@pytest.mark.parametrize(
    ("vision", "connector", "feature_layer"),
    [("tiny-clip", "mlp:48@gelu-tanh", None), ("tiny-siglip", "linear", -1), ("tiny-siglip", "mlp:8@gelu-tanh", 1)],
)
def test_llama_cpps_graph_on_mmproj_gives_our_image_embeddings(answerer, tmp_path, vision, connector, feature_layer):
    model = answerer(vision, "tiny-llama", connector, feature_layer=feature_layer)
    done = export_gguf(model, tmp_path / "out", name="x", dtype="f32")
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(llava_graph(done.files[1], model.vision.normalize(pixels)), model.encode_images(pixels), atol=1e-5, rtol=1e-5)


def test_keys_of_mmproj(answerer, tmp_path):
    seen = fields(export_gguf(answerer("tiny-clip"), tmp_path / "out", name="x").files[1])
    assert seen["general.architecture"] == "clip"
    assert (seen["clip.projector_type"], seen["clip.has_vision_encoder"], seen["clip.use_gelu"]) == ("mlp", True, False)
    assert [seen[f"clip.vision.{key}"] for key in ("image_size", "patch_size", "block_count", "projection_dim")] == [32, 8, 2, 32]
    assert seen["clip.vision.feature_layer"] == [2]


def test_f16_is_that_of_matrices_and_its_rounding_is_measured(answerer, tmp_path):
    done = export_gguf(answerer("tiny-clip"), tmp_path / "out", name="x")
    types = {tensor.name: tensor.tensor_type.name for file in done.files for tensor in gguf.GGUFReader(file).tensors}
    assert {types[name] for name in ("token_embd.weight", "blk.0.attn_q.weight", "v.patch_embd.weight", "mm.2.weight")} == {"F16"}
    assert {types[name] for name in ("output_norm.weight", "v.position_embd.weight", "v.class_embd", "mm.0.bias")} == {"F32"}
    assert 0 < done.rounding < 1e-3
    assert [file.name for file in done.files] == ["x-F16.gguf", "mmproj-x-F16.gguf"]


def test_notes_say_where_llama_cpp_differs(answerer, tmp_path):
    notes = "\n".join(export_gguf(answerer("tiny-clip", "tiny-mistral"), tmp_path / "out", name="x").notes)
    assert all(words in notes for words in ("tanh approximation", "pads pictures to squares", "context is 6"))
    assert not export_gguf(answerer("tiny-siglip", connector="mlp:8@gelu-tanh", resize="pad"), tmp_path / "two", name="x").notes


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (("tiny-fused", "tiny-llama", "mlp2x-gelu"), "not one CLIP or SigLIP tower"),
        (("tiny-clip", "tiny-llama", "mlp:8@silu"), "activation silu, and llama.cpp's projector has GELU"),
        (("tiny-clip", "tiny-llama", "pixel-shuffle-2x"), "PixelShuffle"),
    ],
)
def test_what_llama_cpp_cannot_express_is_refused(answerer, tmp_path, parts, reason):
    with pytest.raises(ConfigError, match=reason):
        export_gguf(answerer(*parts), tmp_path / "out", name="x")
    assert not (tmp_path / "out").exists()


def test_scaled_positions_become_factors_or_are_refused(answerer, tmp_path):
    model = answerer("tiny-clip", "tiny-llama")
    rope = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model.language.model.config.rope_parameters = rope | {"original_max_position_embeddings": 64}
    model.language.decoder.rotary_emb.inv_freq = torch.tensor([1.0, 0.1, 0.005, 0.001 / 8])
    factors = tensors(export_gguf(model, tmp_path / "out", name="x").files[0])["rope_freqs.weight"]
    torch.testing.assert_close(factors, torch.tensor([1.0, 1.0, 2.0, 8.0]))
    model.language.model.config.rope_parameters = rope | {"rope_type": "yarn"}
    with pytest.raises(ConfigError, match="scales its positions by 'yarn'"):
        export_gguf(model, tmp_path / "two", name="x")


def test_weight_beyond_f16_is_refused(answerer, tmp_path):
    model = answerer("tiny-clip")
    model.connector.readout.weight.data[0, 0] = 1e6
    with pytest.raises(ConfigError, match=r"1e.06 is too large for f16. Export with --dtype f32"):
        export_gguf(model, tmp_path / "out", name="x")


def test_tensor_that_is_read_back_as_another_leaves_nothing(answerer, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_files.Stored, "values", property(lambda self: self.exact.astype(self.dtype) + torch.rand(1).item()))
    with pytest.raises(CheckpointError, match="is not what was written"):
        export_gguf(answerer("tiny-clip"), tmp_path / "out", name="x")
    assert not (tmp_path / "out").exists()


def test_rows_of_a_head_are_interleaved():
    rows = torch.arange(8)  # two heads of 4: halves [0, 1] and [2, 3]
    assert interleaved(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
