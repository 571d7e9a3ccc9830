"""The tiny models are the same everywhere and disturb nothing."""

import subprocess
import sys

import torch

from vlm.backbones.language import LANGUAGE

STATE = """
import hashlib
from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.tiny import _tokenizer_json
from vlm.backbones.loading import Load
spec = LANGUAGE["tiny-qwen3"]
weights = b"".join(t.numpy().tobytes() for t in spec.build(spec, Load(None)).state_dict().values())
print(hashlib.sha256(weights + _tokenizer_json().encode()).hexdigest())
"""


def test_weights_and_vocabulary_are_the_same_in_another_process(capsys):
    exec(STATE, {})
    other = subprocess.run([sys.executable, "-c", STATE], capture_output=True, text=True, check=True).stdout
    assert capsys.readouterr().out == other


def test_a_short_text_has_pinned_ids(tiny, name):
    ids = tiny(name).tokenizer("What color is the circle?", add_special_tokens=False).input_ids
    assert ids == [300, 280, 363, 96, 281, 276, 328, 45][: len(ids)]


def test_building_leaves_the_global_random_state_alone(tiny, name):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    tiny(name)
    assert torch.equal(torch.rand(3), wanted)


def test_the_global_seed_has_no_influence(tiny, name):
    torch.manual_seed(1)
    first = tiny(name).model.get_input_embeddings().weight
    torch.manual_seed(2)
    assert torch.equal(tiny(name).model.get_input_embeddings().weight, first)


def test_names_give_different_weights(tiny):
    llama, mistral = (tiny(name).model.get_input_embeddings().weight for name in ("tiny-llama", "tiny-mistral"))
    assert not torch.equal(llama, mistral)


def test_any_text_survives_the_tokenizer(tiny):
    tokenizer = tiny("tiny-llama").tokenizer
    for text in ("  two  spaces ", "日本語 und Ümläute 🙂", "\tTabs\n\nand lines", "{braces} <|im_start|>"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_bos_is_added_where_the_family_adds_it():
    starts = {name: LANGUAGE[name].tokenizer(LANGUAGE[name], None)("x").input_ids[0] for name in ("tiny-llama", "tiny-mistral", "tiny-phi")}
    assert starts["tiny-llama"] == starts["tiny-mistral"] == 0
    assert starts["tiny-phi"] != 0
