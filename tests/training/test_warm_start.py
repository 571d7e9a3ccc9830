from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_data import rows, turns, write

import vlm
from vlm.conf.schema import BatchPlan
from vlm.data.reader import open_dataset
from vlm.data.stream.loader import make_loader
from vlm.data.stream.order import shuffled
from vlm.errors import ConfigError
from vlm.models.build import build
from vlm.training.generative import chat_examples
from vlm.training.warm_start import warm_start


def started(config, *, per_device):
    model = build(replace(config.model, connector="linear"), precision="fp32", trained=("connector",))
    samples = open_dataset(config.stage.dataset, data_root=config.data_root)
    plan = BatchPlan(world=1, per_device=per_device, accumulation=1)
    order, num_steps = shuffled(len(samples), 0), plan.steps(len(samples))
    explained = warm_start(model, make_loader(chat_examples(config, model, samples), order, plan=plan, num_steps=num_steps))
    return model, explained


def test_connector_is_the_ridge_regression_from_mean_features_to_mean_answers(tiny):
    """Only samples with one picture count: four colors and the one with two turns. Solved again here by numpy, on standardized features."""
    config = tiny()
    model, explained = started(config, per_device=1)
    x, y = [], []
    for example in chat_examples(config, model, open_dataset(config.stage.dataset, data_root=config.data_root)):
        if len(example.pixels) == 1:
            answer = [i for i in example.labels.tolist() if i != -100 and i not in model.language.tokenizer.all_special_ids]
            with torch.no_grad():
                x.append(model.vision(example.pixels)[0].double().numpy())
                y.append(model.language.model.get_input_embeddings().weight[answer].mean(0).double().numpy())
    x, y = np.array(x), np.array(y)  # [samples, P, D] and [samples, E]
    x = ((x - x.mean((0, 1))) / x.std((0, 1), ddof=1)).mean(1)
    a, b = x - x.mean(0), y - y.mean(0)
    penalty = 0.01 * np.trace(a.T @ a / len(a)) / a.shape[1]
    weight = np.linalg.solve(a.T @ a / len(a) + penalty * np.eye(a.shape[1]), a.T @ b / len(a))
    assert len(x) == 5
    np.testing.assert_allclose(model.connector.readout.weight.detach().numpy(), weight.T, atol=1e-4)
    assert explained == pytest.approx(1 - ((b - a @ weight) ** 2).sum() / (b**2).sum(), abs=1e-3)


def test_samples_without_or_with_several_pictures_in_a_batch_do_not_spoil_the_others(tiny):
    (alone, first), (together, second) = (started(tiny(), per_device=size) for size in (1, 8))
    torch.testing.assert_close(together.connector.readout.weight, alone.connector.readout.weight, atol=1e-4, rtol=0)
    assert first == pytest.approx(second, abs=1e-4)


def test_data_without_pictures_is_refused(tiny, tmp_path):
    data = write(tmp_path / "data", [{"id": "x", "conversations": turns("Say yes.", "Yes")}])
    with pytest.raises(ConfigError, match=r"no sample with exactly one image tile. Use --model.connector-init random"):
        started(tiny(dataset=str(data)), per_device=1)


def test_connector_without_weights_is_refused(tiny):
    model = build(tiny().model, precision="fp32")
    model.connector = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"needs a connector that ends in a linear layer; Identity does not. Use connector_init random"):
        warm_start(model, [])


def test_stage_starts_by_ridge_if_the_model_says_so(tiny, caplog):
    config = tiny(max_steps=1)
    with caplog.at_level("INFO", logger="vlm"):
        vlm.train(replace(config, model=replace(config.model, connector_init="ridge")))
    assert "connector: ridge start on " in caplog.text
    assert len(rows()) == 8
