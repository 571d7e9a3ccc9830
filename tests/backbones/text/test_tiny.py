import torch

from vlm.backbones.loading import Load
from vlm.backbones.text.base import build_text
from vlm.backbones.text.tiny import SPECS


def test_same_name_gives_the_same_weights_and_leaves_the_random_state_alone(name: str):
    first = SPECS[name].build(SPECS[name], Load(source=None))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    second = SPECS[name].build(SPECS[name], Load(source=None))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_tower_has_the_parameters_that_its_spec_says(name: str):
    tower = SPECS[name].build(SPECS[name], Load(source=None))
    assert sum(parameter.numel() for parameter in tower.parameters()) == SPECS[name].num_parameters


def test_case_of_the_letters_does_not_matter(name: str):
    encoder = build_text(SPECS[name], Load(source=None))
    assert torch.equal(encoder.tokenize(["A Blue Circle"]), encoder.tokenize(["a blue circle"]))


def test_tokenizer_leaves_no_text_unknown(name: str):
    tokenizer = SPECS[name].tokenizer(SPECS[name], None)
    assert tokenizer.decode(tokenizer("naïve 図 🙂").input_ids, skip_special_tokens=True) == "naïve 図 🙂"
