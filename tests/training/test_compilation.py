"""Blocks through torch.compile: the same results, and few graphs however many lengths come."""

from dataclasses import replace

import pytest
import torch
from tiny_data import metrics
from torch import nn

import vlm
from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import build_language
from vlm.backbones.loading import Load
from vlm.errors import ConfigError
from vlm.training import compilation
from vlm.training.compilation import compile_blocks
from vlm.training.recompute import recompute
from vlm.types import Documents

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch looks at it itself


def documents(*lengths: int) -> Documents:
    """One row with documents of these lengths."""
    return Documents(torch.tensor([0, *lengths]).cumsum(0), torch.cat([torch.arange(length) for length in lengths])[None])


def gradients(language: nn.Module, lengths: tuple[int, ...]) -> list[torch.Tensor]:
    embeds = torch.randn(1, sum(lengths), 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    states = language(embeds, documents(*lengths))
    states.square().mean().backward()
    return [states.detach(), embeds.grad]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch):
    """Compile without generating code, and collect the graphs."""
    torch._dynamo.reset()
    made: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _):
        made.append(graph)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(compilation.torch, "compile", lambda forward: compiler(forward, backend=backend))
    return made


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-phi"])
def test_states_and_gradients_are_the_same_in_few_graphs_for_all_layers_lengths_and_documents(graphs, name: str):
    spec = LANGUAGE[name]
    language = build_language(replace(spec, architecture={**spec.architecture, "num_hidden_layers": 4}), Load(None))
    lengths = [(9, 4), (5, 5, 3), (20,), (2, 7, 1, 6), (31, 3), (8, 8, 8)]
    wanted = [gradients(language, each) for each in lengths]
    compile_blocks(language.blocks()[:-1])
    counts = []
    for each, (states, gradient) in zip(lengths, wanted, strict=True):
        ours = gradients(language, each)
        torch.testing.assert_close(ours[0], states, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(ours[1], gradient, atol=1e-6, rtol=1e-5)
        counts.append(len(graphs))
    # before and after attention, in the layer and in its attention: once for the first length, once for all others, one for a guard of torch's
    assert 2 <= counts[-1] <= 9
    assert counts[3:] == [counts[-1]] * 3


def test_a_compiled_block_can_be_computed_again_in_the_backward_pass(graphs):
    language = build_language(LANGUAGE["tiny-llama"], Load(None))
    wanted = gradients(language, (9, 4))
    compile_blocks(language.blocks()[:-1])
    recompute(language.blocks())
    for ours, other in zip(gradients(language, (9, 4)), wanted, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-6, rtol=1e-5)
    assert graphs


def test_generation_makes_no_graph(graphs):
    language = build_language(LANGUAGE["tiny-llama"], Load(None))
    compile_blocks(language.blocks())
    with torch.no_grad():
        language.generate(torch.randn(1, 5, 32), torch.ones(1, 5, dtype=torch.int64), max_new_tokens=4)
    assert not graphs


def test_a_machine_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"C\+\+ compiler"):
        compile_blocks([nn.Linear(2, 2)])


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_a_plain_one(tiny):
    plain = tiny("finetune")
    compiled = replace(plain, seed=plain.seed, stage=replace(plain.stage, name="compiled", compile=("vision", "language")))
    losses = [[line["loss"] for line in metrics(vlm.train(config))] for config in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
