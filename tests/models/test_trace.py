import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from vlm.conf.schema import VisionLanguageConfig
from vlm.models.build import build, skeleton
from vlm.models.losses import cross_entropy
from vlm.models.trace import Shape, trace
from vlm.models.vision_language import VisionLanguageModel
from vlm.training.recompute import recompute
from vlm.types import Documents

SHAPE = Shape(rows=3, tiles=1, text=20, labels=8)


def really_kept(model: VisionLanguageModel) -> int:
    """Bytes that autograd holds at the end of a real forward pass of SHAPE, weights not counted."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model.train()
    size, labels = model.image_policy.size, SHAPE.rows * SHAPE.labels
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        images = model.encode_images(torch.zeros(SHAPE.rows, 3, size, size, dtype=torch.uint8))
        embeds = torch.cat([images, model.language.embed(torch.full((SHAPE.rows, SHAPE.text), 5))], dim=1)
        needed = torch.arange(labels)
        hidden = model.language(embeds, Documents.one_per_row(*embeds.shape[:2]), needed=needed)
        loss = cross_entropy(model.language.logits(hidden.flatten(0, 1)[needed]), torch.full((labels,), 5)).sum
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("trained", [("connector",), ("connector", "language"), ("vision", "connector", "language")])
def test_kept_bytes_are_those_of_a_real_forward_pass(language: str, trained: tuple[str, ...]):
    config = VisionLanguageConfig(vision="tiny-siglip", language=language)
    model = build(config, precision="fp32", trained=trained)
    real = really_kept(model)
    # families differ in whether the output of attention is copied once more in each layer; CPU needs no expanded keys for a window
    copies = len(model.language.blocks()) * SHAPE.rows * (SHAPE.tiles * model.tokens_per_tile + SHAPE.text) * model.language.width * 4
    assert trace(skeleton(config, precision="fp32", trained=trained), SHAPE).kept.total() == pytest.approx(real, abs=copies + 0.01 * real)


def test_with_gradient_checkpointing_blocks_keep_their_inputs_alone():
    config, trained = VisionLanguageConfig(vision="tiny-siglip", language="tiny-llama"), ("connector", "language")
    model = build(config, precision="fp32", trained=trained)
    recompute(model.language.blocks())
    kept = trace(skeleton(config, precision="fp32", trained=trained), SHAPE).kept
    at_the_end_of_forward = kept.total(recomputed=["language"]) - max(kept.blocks["language"])
    assert at_the_end_of_forward == pytest.approx(really_kept(model), rel=0.05)


def test_under_autocast_products_are_kept_in_half_the_bytes_and_weights_are_copied():
    config, trained = VisionLanguageConfig(vision="tiny-siglip", language="tiny-llama"), ("connector", "language")
    model = build(config, precision="bf16-mixed", trained=trained)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        real = really_kept(model)
    traced = trace(skeleton(config, precision="bf16-mixed", trained=trained), SHAPE, autocast=True).kept
    assert traced.total() == pytest.approx(real, rel=0.15)  # on CPU, attention of short documents runs in fp32
    matrices = sum(p.numel() for block in model.language.blocks() for p in block.parameters() if p.ndim == 2)
    assert traced.copies == {"language": 2 * matrices}


def test_a_frozen_tower_keeps_nothing():
    traced = trace(skeleton(VisionLanguageConfig(vision="tiny-siglip", language="tiny-llama"), precision="fp32", trained=("connector",)), SHAPE)
    assert sum(traced.kept.blocks["vision"]) == 0
    assert all(call.input_gradient == call.weight_gradient == 0 for call in traced.calls if call.part == "vision")


def test_gradients_of_grouped_convolutions_cost_what_their_forward_pass_costs():
    model = skeleton(VisionLanguageConfig(vision="efficientnet-lite0-64", language="tiny-llama"), precision="fp32", trained=("vision",))
    first, *others = [call for call in trace(model, SHAPE).calls if call.part == "vision"]
    assert (first.input_gradient, first.weight_gradient) == (0, first.forward)  # pixels have no gradient
    assert all(call.input_gradient == call.weight_gradient == call.forward > 0 for call in others)


def test_a_frozen_language_model_has_gradients_of_inputs_alone():
    traced = trace(skeleton(VisionLanguageConfig(vision="tiny-siglip", language="tiny-phi"), precision="fp32", trained=("connector",)), SHAPE)
    calls = [call for call in traced.calls if call.part in ("language", "head") and not call.is_attention]
    assert sum(call.weight_gradient for call in calls) == 0
    assert sum(call.input_gradient for call in calls) > 0.99 * sum(call.forward for call in calls)  # rotary angles have none


def test_windows_of_attention_are_seen():
    traced = trace(skeleton(VisionLanguageConfig(vision="tiny-siglip", language="tiny-mistral"), precision="fp32", trained=("connector",)), SHAPE)
    assert {call.window for call in traced.calls if call.is_attention and call.part == "language"} == {6}


class Resampler(nn.Module):
    """A connector with products that no linear layer makes: an einsum, and torch's own attention over learned queries."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.first = nn.Parameter(torch.empty(width_in, width_out))
        self.queries = nn.Parameter(torch.empty(1, 16, width_out))
        self.attention = nn.MultiheadAttention(width_out, 4, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        hidden = torch.einsum("npd,de->npe", features, self.first)
        queries = self.queries.expand(len(features), -1, -1).contiguous()
        return self.attention(queries, hidden, hidden, need_weights=False)[0]


def test_products_inside_of_other_functions_are_seen():
    model = skeleton(VisionLanguageConfig(vision="tiny-siglip", language="tiny-llama"), precision="fp32", trained=("vision", "connector"))
    with torch.device("meta"):
        model.connector = Resampler(16, 32)
    with FlopCounterMode(display=False) as counter:
        model.connector(torch.empty(3, 16, 16, device="meta", requires_grad=True)).sum().backward()
    calls = [call for call in trace(model, SHAPE).calls if call.part == "connector"]
    seen = sum(call.forward + call.input_gradient + call.weight_gradient for call in calls)
    assert seen == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_a_model_with_weights_is_refused():
    model = build(VisionLanguageConfig(vision="tiny-siglip", language="tiny-llama"), precision="fp32")
    with pytest.raises(ValueError, match="meta device"):
        trace(model, SHAPE)
