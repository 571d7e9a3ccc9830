from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import losses
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import vlm
from vlm.conf.schema import BatchPlan, LearningRates
from vlm.data.reader import open_dataset
from vlm.data.stream.loader import make_loader
from vlm.data.stream.order import shuffled
from vlm.errors import ConfigError, DataFormatError
from vlm.models.build import build
from vlm.training.generative import BATCHES_OF_16, chat_examples
from vlm.training.loop import Hooks, Steps, Trainee, train
from vlm.types import IGNORE_INDEX, LossSum, World


def build_for(config):
    torch.manual_seed(config.seed)
    return build(config.model, precision=config.precision, trained=config.stage.lr.trained, seed=config.seed)


def batches_for(config, model, plan, num_steps):
    samples = open_dataset(config.stage.dataset, data_root=config.data_root)
    return make_loader(chat_examples(config, model, samples), shuffled(len(samples), config.seed), plan=plan, num_steps=num_steps)


def train_here(config, model=None, *, num_steps=2, batches=None, hooks=None, autocast=False):
    model = model or build_for(config)
    plan = BatchPlan.of(config.stage, world=1)
    batches = batches if batches is not None else batches_for(config, model, plan, num_steps)
    world = World.single()
    trainee, steps = Trainee.of(model, config.stage, world), Steps(num_steps, seed=config.seed)
    return train(trainee, batches, stage=config.stage, plan=plan, steps=steps, world=world, autocast=autocast, hooks=hooks or Hooks())


def weights(run_dir):
    (file,) = run_dir.glob("checkpoints/*/weights.safetensors")
    return load_file(file)


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_accumulation_changes_neither_losses_nor_weights(tiny, stage):
    runs = []
    for per_device in (8, 4, 1):
        config = tiny(stage, per_device_batch_size=per_device, schedule="constant")
        runs.append(vlm.train(replace(config, model=replace(config.model, name=f"by{per_device}"))))
    reference, *others = runs
    for other in others:
        assert losses(other) == pytest.approx(losses(reference), abs=1e-5)
        for name, tensor in weights(reference).items():
            torch.testing.assert_close(weights(other)[name], tensor, atol=2e-5, rtol=0, msg=name)
    assert len(set(losses(reference))) == 4


def test_loss_of_a_step_is_the_mean_over_the_labelled_tokens_of_its_samples(tiny):
    config = tiny("align", per_device_batch_size=2)
    model = build_for(config)
    singly = BatchPlan(world=1, per_device=1, accumulation=8)
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches_for(config, model, singly, 1):
            hidden = model.hidden(batch)
            scores = model.language.logits(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1).log_softmax(-1)
            for position in range(1, batch.ids.shape[1]):
                label = int(batch.labels[0, position])
                if label != IGNORE_INDEX:
                    total, count = total - float(scores[0, position - 1, label]), count + 1
    assert train_here(config, model, num_steps=1) == pytest.approx([total / count], abs=1e-5)


def test_frozen_weights_are_bit_equal_after_training(tiny):
    model = build_for(tiny("align"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_here(tiny("align"), model)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"connector.{name}" for name, _ in model.connector.named_parameters()}


def test_with_lora_only_adapter_and_connector_change(tiny):
    model = build_for(tiny("finetune"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_here(tiny("finetune"), model, num_steps=3)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".lora_" in name or name.startswith("connector.")}
    assert any(".lora_" in name for name in changed)


def test_gradient_is_clipped_to_the_norm_and_reported_before(tiny):
    norms, reported = [], []

    def measure(optimizer, *_):
        grads = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
        norms.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))

    handle = register_optimizer_step_pre_hook(measure)
    try:
        train_here(tiny(clip_norm=0.01), hooks=Hooks(log=lambda _, values: reported.append(values["grad_norm"])))
        train_here(tiny(clip_norm=None), hooks=Hooks(log=lambda _, values: reported.append(values["grad_norm"])))
    finally:
        handle.remove()
    assert norms[:2] == pytest.approx([0.01, 0.01], rel=1e-3)
    assert norms[2:] == pytest.approx(reported[2:], rel=1e-4)
    assert reported[0] > 0.01


def test_loss_that_is_not_a_number_is_refused_with_the_remedy(tiny):
    model = build_for(tiny())
    nn.init.constant_(model.connector.readout.bias, float("nan"))
    with pytest.raises(ConfigError, match=r"Step 1: the loss is nan. Lower the learning rates \(--stage.lr.*\) or use --precision fp32"):
        train_here(tiny(), model)


class InfiniteGradient(nn.Module):
    """sqrt at 0: a finite loss with an infinite gradient."""

    def __init__(self):
        super().__init__()
        self.connector = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.connector.weight)

    def forward(self, batch):
        return LossSum(self.connector.weight.abs().sqrt().sum(), torch.tensor(1))


def test_gradient_that_is_not_a_number_never_reaches_the_weights(tiny):
    config = tiny()
    model, batches = InfiniteGradient(), batches_for(config, build_for(config), BatchPlan.of(config.stage, world=1), 1)
    with pytest.raises(ConfigError, match="Step 1: the norm of the gradient is"):
        train_here(config, model, batches=batches)
    assert model.connector.weight.item() == 0


def test_global_batch_without_labelled_tokens_is_refused(tiny):
    model = build_for(tiny())
    batches = [replace(batch, labels=torch.full_like(batch.labels, IGNORE_INDEX)) for batch in batches_for(tiny(), model, BATCHES_OF_16, 2)]
    with pytest.raises(DataFormatError, match="Step 1: no sample of the global batch has a labelled token"):
        train_here(tiny(), model, batches=batches)


def test_micro_batch_without_labelled_tokens_is_nothing_special(tiny):
    model = build_for(tiny())
    first, second = batches_for(tiny(), model, BatchPlan(world=1, per_device=4, accumulation=2), 1)
    silent = replace(second, labels=torch.full_like(second.labels, IGNORE_INDEX))
    with torch.no_grad():
        alone = model(first)
    assert train_here(tiny(), model, num_steps=1, batches=[first, silent]) == pytest.approx([float(alone.sum / alone.count)], abs=1e-5)


def test_data_that_ends_too_early_is_not_taken_for_a_smaller_batch(tiny):
    model = build_for(tiny())
    with pytest.raises(ValueError, match="2 micro-batches were wanted, 1 came"):
        train_here(tiny(), model, batches=list(batches_for(tiny(), model, BATCHES_OF_16, 1)))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16"])
@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_low_precision_trains(tiny, precision, stage):
    config = tiny(stage, precision=precision, max_steps=3)
    model = build_for(config)
    low = train_here(config, model, num_steps=3, autocast=precision == "bf16-mixed")
    exact = train_here(replace(config, precision="fp32"), num_steps=3)
    assert low == pytest.approx(exact, rel=0.02)
    assert next(model.vision.parameters()).dtype == torch.bfloat16
    assert next(model.connector.parameters()).dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_a_rate_for_the_vision_backbone_changes_it(tiny):
    config = tiny(lr=LearningRates(connector=1e-3, vision=1e-3))
    run_dir = vlm.train(config)
    fresh = build_for(tiny()).state_dict()
    changed = [name for name, tensor in weights(run_dir).items() if name.startswith("vision.") and not torch.equal(tensor, fresh[name])]
    assert any("layers.0" in name for name in changed)
    assert not any("head" in name for name in changed)


def test_metrics_are_of_the_global_batch(tiny):
    seen = []
    train_here(tiny(per_device_batch_size=2), num_steps=1, hooks=Hooks(log=lambda step, values: seen.append((step, dict(values)))))
    ((step, values),) = seen
    assert step == 1
    rates = {
        "tokens_per_second",
        "images_per_second",
        "seconds_per_step",
        "data_wait_share",
        "padding_share",
        "optimizer_share",
        "communication_share",
    }
    assert values.keys() == {"loss", "grad_norm", "lr/connector", "num_samples", "num_truncated"} | rates
    assert (values["num_samples"], values["num_truncated"]) == (8, 0)
    assert values["images_per_second"] * values["seconds_per_step"] == pytest.approx(7)  # 4 pictures, a pair, one with two turns


def test_loss_falls(tiny):
    curve = train_here(tiny("finetune", max_steps=12, schedule="constant"), num_steps=12)
    assert curve[-1] < 0.8 * curve[0]
    assert sum(later < earlier for earlier, later in pairwise(curve)) > 8
