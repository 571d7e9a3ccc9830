"""Compositions as LLaVA: the rules of keys and config that transformers 4, transformers 5 and vLLM read by."""

import pytest
import torch

from vlm.errors import ConfigError
from vlm.export.llava import as_llava, grown

# vllm/model_executor/models/llava.py: the modules that weights are loaded into, after its own prefixes; projector activations of its activation.py.
VLLM_PREFIXES = ("vision_tower.vision_model.", "multi_modal_projector.linear_", "language_model.model.", "language_model.lm_head.weight")
VLLM_ACTIVATIONS = {"gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "quick_gelu"}


@pytest.mark.parametrize(
    ("vision", "language", "connector"),
    [("tiny-clip", "tiny-llama", "mlp2x-gelu"), ("tiny-siglip", "tiny-qwen2", "linear"), ("tiny-siglip", "tiny-phi3", "mlp:8@silu")],
)
def test_keys_and_config_are_those_that_vllm_reads(answerer, vision, language, connector):
    llava = as_llava(answerer(vision, language, connector))
    config, text, tower = llava.config, llava.config["text_config"], llava.config["vision_config"]
    assert all(name.startswith(VLLM_PREFIXES) for name in llava.weights)
    assert not any(".head." in name for name in llava.weights)
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert tower["model_type"] in ("clip_vision_model", "siglip_vision_model")
    assert text["architectures"][0].endswith("ForCausalLM")  # init_vllm_registered_model looks the language model up by it
    assert config["projector_hidden_act"] in VLLM_ACTIVATIONS
    assert config["image_token_index"] < text["vocab_size"] == len(llava.weights["language_model.model.embed_tokens.weight"])
    # vLLM counts (image_size // patch_size) ** 2, + 1 for CLIP's class token, - 1 for "default"
    patches = (tower["image_size"] // tower["patch_size"]) ** 2
    assert config["image_seq_length"] == patches
    assert config["vision_feature_select_strategy"] == {"clip_vision_model": "default", "siglip_vision_model": "full"}[tower["model_type"]]
    assert tower.get("vision_use_head", False) is False
    tied = config["tie_word_embeddings"]
    assert text["tie_word_embeddings"] is tied
    assert ("language_model.lm_head.weight" in llava.weights) is not tied
    assert not llava.losses
    assert not any("vLLM" in note for note in llava.notes)


@pytest.mark.parametrize(("feature_layer", "expected"), [(None, -2), (-1, -1), (0, -4), (3, -1)])
def test_feature_layer_is_counted_from_the_end(answerer, feature_layer, expected):
    assert as_llava(answerer(feature_layer=feature_layer)).config["vision_feature_layer"] == expected


@pytest.mark.parametrize(("family", "dropped", "extra"), [("siglip", 0, 0), ("siglip", 1, 0), ("clip", 1, 1), ("clip", 0, 1)])
def test_tokens_before_the_patches_are_counted_as_the_processor_does(answerer, family, dropped, extra):
    """LlavaProcessor: patches + additional tokens, less one for "default"; Mantis leaves out SigLIP's first patch."""
    model = answerer(f"tiny-{family}")
    model.vision.num_prefix_tokens, model.tokens_per_tile = dropped, 16 + extra - dropped
    llava = as_llava(model)
    assert (llava.extra_tokens, llava.drops_first) == (extra, bool(dropped))
    assert llava.config["vision_feature_select_strategy"] == ("default" if dropped else "full")


def test_table_grows_by_means_in_multiples_of_64(answerer):
    model = answerer()
    llava = as_llava(model)
    table = llava.weights["language_model.model.embed_tokens.weight"]
    assert (len(table), llava.new_rows) == (448, tuple(range(384, 448)))
    torch.testing.assert_close(table[384], table[:384].mean(0))


def test_logit_of_a_new_row_is_never_the_largest():
    head, hidden = torch.randn(10, 4), torch.randn(100, 4)
    logits = hidden @ grown(head, 12).T
    assert (logits.argmax(1) < 10).all()


@pytest.mark.parametrize(
    ("parts", "reasons"),
    [
        (("tiny-fused", "tiny-llama", "mlp3x-gelu"), "of the class FusedVision.*; the connector is an MLP of 3 linear layers.*`--with-code` writes"),
        (("tiny-dinov2", "tiny-llama", "mlp2x-gelu"), "5 tokens before the patches"),
        (("tiny-siglip", "tiny-llama", "pixel-shuffle-2x"), "PixelShuffle"),
    ],
)
def test_what_llava_cannot_express_is_refused_with_every_reason(answerer, parts, reasons):
    with pytest.raises(ConfigError, match=reasons):
        as_llava(answerer(*parts))


def test_bias_of_the_head_is_a_loss_unless_it_is_zero(answerer):
    model = answerer(language="tiny-phi")
    assert not as_llava(model).losses
    torch.nn.init.constant_(model.language.model.lm_head.bias, 0.25)
    assert "head has a bias (largest value 0.25)" in as_llava(model).losses[0]
