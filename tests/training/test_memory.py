import pytest
import torch

from vlm.conf.presets import PRESETS
from vlm.models.build import build, skeleton
from vlm.models.trace import Kept
from vlm.training.memory import memory_of
from vlm.training.optim import make_optimizer

NOTHING_KEPT = Kept(outside=0, blocks={}, inputs={}, copies={})


@pytest.mark.parametrize("preset", ["tiny/align", "tiny/finetune"])
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed", "bf16"])
def test_weights_gradients_and_optimizer_are_as_large_as_those_of_a_real_step(preset: str, precision: str):
    config = PRESETS[preset]
    trained = config.stage.lr.trained
    model = build(config.model, precision=precision, trained=trained)
    optimizer = make_optimizer(model, config.stage)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    optimizer.step()
    averages = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]

    memory = memory_of(skeleton(config.model, precision=precision, trained=trained), NOTHING_KEPT, num_devices=1, recomputed=())
    assert memory.weights == sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    assert memory.gradients == sum(weight.grad.nbytes for weight in model.parameters() if weight.grad is not None)
    assert memory.optimizer == sum(average.nbytes for average in averages)
    assert memory.total == memory.weights + memory.gradients + memory.optimizer


def test_several_processes_keep_gradients_twice():
    model = skeleton(PRESETS["tiny/align"].model, precision="fp32", trained=("connector",))
    one, two = (memory_of(model, NOTHING_KEPT, num_devices=n, recomputed=()) for n in (1, 2))
    assert two.gradients == 2 * one.gradients
    assert two.optimizer == one.optimizer


def test_shards_divide_what_is_trained_and_blocks_are_whole_while_they_work():
    model = skeleton(PRESETS["llava-1.5-7b/finetune"].model, precision="bf16", trained=("connector", "language"))
    whole, shared = (memory_of(model, NOTHING_KEPT, num_devices=8, recomputed=(), shards=n) for n in (1, 8))
    assert shared.optimizer == whole.optimizer // 8
    assert shared.gradients == whole.gradients // 16
    block = sum(weight.nbytes for weight in model.language.blocks()[0].parameters())
    outside = 2 * (2 * 32_000 * 4096)  # embeddings and head, bf16
    assert shared.weights == pytest.approx(whole.weights / 8 + 2 * block + outside, rel=0.02)
