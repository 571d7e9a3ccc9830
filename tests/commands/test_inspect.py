import pytest

from vlm.__main__ import main


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny-siglip", ["vision tiny-siglip", "12,256", "32 x 32", "SiglipVisionModel"]),
        ("tiny-llama", ["language tiny-llama", "43,168", "512 tokens", "LlamaForCausalLM"]),
        ("mlp2x-gelu", ["connector mlp2x-gelu", "arXiv:2310.03744", "Linear"]),
        ("tiny/finetune", ["preset tiny/finetune", "tokens an image", "16", "language at 0.01", "1,600", "runs/tiny+finetune+x7"]),
        ("gelu-mlp", ["connector mlp2x-gelu"]),
        ("phi-2", ["2,779,683,840", "2,048 tokens"]),
    ],
)
def test_part_or_preset_is_shown_without_weights(name, words, capsys):
    assert main(["inspect", name]) == 0
    said = capsys.readouterr().out
    assert [word for word in words if word not in said] == []


def test_unknown_name_gets_the_nearest(capsys):
    assert main(["inspect", "siglip-so400m-383"]) == 2
    assert "Did you mean 'siglip-so400m-384'" in capsys.readouterr().err
