import json
import logging
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT
from vlm.backbones.text.base import auto_tokenizer, build_text, tokenizer_hash
from vlm.backbones.text.tiny import SPECS
from vlm.errors import CheckpointError, ConfigError, DataFormatError, MissingPackageError
from vlm.types import TextEncoder

FULL_SIZE = [name for name in TEXT if not name.startswith("tiny-")]
TEXTS = ["A blue circle", "", "a red square and a green triangle", "What shape is in the picture? " * 9]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_entry_has_the_parameters_and_shapes_that_its_spec_says(name: str):
    spec = TEXT[name]
    with torch.device("meta"):
        tower = spec.build(spec, Load(source=None))
        assert tower(torch.zeros(2, spec.max_length, dtype=torch.long)).shape == (2, spec.width)
    assert sum(parameter.numel() for parameter in tower.parameters()) == spec.num_parameters
    assert len(tower.blocks()) == spec.architecture["num_hidden_layers"]


@pytest.mark.parametrize("name", [name for name in TEXT if TEXT[name].reading is None])
def test_text_entry_is_named_after_the_vision_entry_of_the_same_checkpoint(name: str):
    from vlm.backbones.vision import VISION

    vision = VISION[name.removesuffix("-text")]
    assert TEXT[name].source == vision.source or name.startswith("tiny-")


def test_vectors_are_those_of_transformers(name: str, folder):
    path, model = folder(name)
    encoder = build_text(SPECS[name], Load(source=path))
    expected = model.get_text_features(encoder.tokenize(TEXTS)).pooler_output
    torch.testing.assert_close(encoder.encode(TEXTS), expected, rtol=0, atol=1e-5)
    assert expected.std(0).mean() > 0.05  # the texts differ, so equality says something


def test_encoder_is_a_text_encoder_of_the_joint_width(name: str):
    encoder = build_text(SPECS[name], Load(source=SPECS[name].source))
    assert isinstance(encoder, TextEncoder)
    assert encoder.encode(TEXTS).shape == (len(TEXTS), SPECS[name].width) == (4, encoder.width)
    assert not torch.allclose(encoder.encode(TEXTS).norm(dim=-1), torch.ones(4), atol=0.05)


def test_vector_does_not_depend_on_the_texts_beside_it(name: str, folder):
    encoder = build_text(SPECS[name], Load(source=folder(name)[0]))
    together = encoder.encode(TEXTS)
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(encoder.encode([text])[0], together[row], rtol=0, atol=1e-5)


def test_words_beyond_the_length_are_cut_and_the_end_token_is_kept(name: str):
    encoder = build_text(SPECS[name], Load(source=None))
    short, long = encoder.tokenize(["circle " * 30, "circle " * 30 + "square"])
    assert len(long) == encoder.max_length
    assert long[-1] == encoder.tokenizer.eos_token_id not in long[:-1]
    assert torch.equal(short, long)


def test_short_text_is_padded_on_the_right_to_the_whole_length(name: str):
    encoder = build_text(SPECS[name], Load(source=None))
    ids = encoder.tokenize(["blue"])[0].tolist()
    words = encoder.tokenizer("blue").input_ids
    assert ids == words + [1] * (32 - len(words))
    assert words[-1] == 1


def test_description_names_what_changes_the_vectors_and_no_call_changes_it(name: str, folder):
    path, _ = folder(name)
    encoder = build_text(SPECS[name], Load(source=path))
    first = encoder.describe()
    encoder.encode(TEXTS)
    half = build_text(SPECS[name], Load(source=path, dtype=torch.bfloat16)).describe()
    assert first == encoder.describe() == json.loads(json.dumps(first))
    assert first | {"dtype": "bfloat16"} == half != first
    assert first["source"] == str(path)
    assert first["max_length"] == 32


def test_tokenizer_with_another_word_has_another_hash():
    tokenizers = [SPECS["tiny-clip-text"].tokenizer(SPECS["tiny-clip-text"], None) for _ in range(3)]
    tokenizers[2].add_tokens(["<beyond>"])
    same, again, other = map(tokenizer_hash, tokenizers)
    assert same == again != other


def test_instruction_is_refused(name: str):
    with pytest.raises(ConfigError, match="takes no instruction, got 'Find the image'"):
        build_text(SPECS[name], Load(source=None)).encode(["a"], instruction="Find the image")


@pytest.mark.parametrize("texts", ["a single string", []])
def test_what_is_no_list_of_texts_is_refused(texts: str | list[str]):
    with pytest.raises(DataFormatError, match="a list of at least one text, got"):
        build_text(SPECS["tiny-clip-text"], Load(source=None)).encode(texts)


def test_gradients_reach_the_token_embeddings(name: str):
    encoder = build_text(SPECS[name], Load(source=None))
    encoder.encode(["blue"]).square().mean().backward()
    table = next(module for module in encoder.modules() if isinstance(module, torch.nn.Embedding))
    assert table.weight.grad.abs().sum() > 0


def test_layer_that_was_replaced_in_the_model_is_the_one_that_runs(name: str):
    encoder = build_text(SPECS[name], Load(source=None))
    path = next(path for path, module in encoder.named_modules() if module is encoder.blocks()[0])
    calls = []
    encoder.get_submodule(path).register_forward_hook(lambda *_: calls.append(path))
    encoder.encode(["blue"])
    assert calls == [path]


@pytest.mark.parametrize("layout", ["two towers", "text only", "text only, with prefix"])
def test_tower_loads_from_every_published_layout_without_the_network(name: str, layout: str, folder, monkeypatch: pytest.MonkeyPatch):
    path, model = folder(name, layout)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    encoder = build_text(SPECS[name], Load(source=path))
    expected = model.get_text_features(encoder.tokenize(TEXTS)).pooler_output
    torch.testing.assert_close(encoder.encode(TEXTS), expected, rtol=0, atol=1e-5)


def test_tower_loads_in_the_type_that_is_asked_for(name: str, folder):
    encoder = build_text(SPECS[name], Load(source=folder(name)[0], dtype=torch.bfloat16))
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    assert encoder.encode(["blue"]).dtype == torch.bfloat16


def test_vision_tower_that_is_left_over_is_not_reported(folder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    path, _ = folder("tiny-clip-text")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # to caplog
    caplog.clear()
    build_text(SPECS["tiny-clip-text"], Load(source=path))
    assert "UNEXPECTED" not in caplog.text


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def change_weights(folder: Path, **tensors: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    changed = {key.replace("__", "."): value for key, value in tensors.items()}
    assert changed.keys() <= weights.keys()
    kept = {key: value for key, value in (weights | changed).items() if value is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_config_of_another_width_is_refused_with_both_values(folder):
    path, _ = folder("tiny-siglip-text", "text only")
    change_config(path, hidden_size=24)
    with pytest.raises(CheckpointError, match="hidden_size is 24, expected 16"):
        build_text(SPECS["tiny-siglip-text"], Load(source=path))


def test_wrong_model_is_refused_before_its_weights_are_read(folder):
    path, _ = folder("tiny-siglip-text")
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="num_hidden_layers is 2, expected 27"):
        TEXT["siglip-so400m-384-text"].build(TEXT["siglip-so400m-384-text"], Load(source=path))


def test_missing_projection_is_named(folder):
    path, _ = folder("tiny-clip-text", "text only")
    change_weights(path, text_projection__weight=None)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*text_projection\.weight"):
        build_text(SPECS["tiny-clip-text"], Load(source=path))


def test_tensor_of_another_shape_is_named_with_both_shapes(folder):
    path, _ = folder("tiny-clip-text")
    change_weights(path, text_projection__weight=torch.ones(9, 16))
    with pytest.raises(CheckpointError, match=r"text_projection\.weight is \(9, 16\), expected \(8, 16\)"):
        build_text(SPECS["tiny-clip-text"], Load(source=path))


def test_truncated_weights_are_a_checkpoint_error(folder):
    path, _ = folder("tiny-clip-text")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="could not be loaded"):
        build_text(SPECS["tiny-clip-text"], Load(source=path))


@pytest.mark.parametrize("source", ["/no/such/folder", Path("no/folder")])
def test_missing_folder_is_one_line_with_a_remedy(source: str | Path):
    with pytest.raises(CheckpointError, match=r"no folder .*Name a local folder") as error:
        SPECS["tiny-clip-text"].build(SPECS["tiny-clip-text"], Load(source=source))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["clip-b16-224-text", "siglip-b16-224-text"])
def test_hub_that_cannot_be_reached_is_one_line_with_a_remedy(name: str):
    spec = TEXT[name]
    for part in (lambda: spec.build(spec, Load(source=spec.source)), lambda: spec.tokenizer(spec, spec.source)):
        with pytest.raises(CheckpointError, match=rf"{spec.source}.*Name a local folder") as error:
            part()
        assert "\n" not in str(error.value)


def test_folder_without_a_tokenizer_is_one_line_with_a_remedy(name: str, folder):
    path, _ = folder(name)
    for file in path.glob("*token*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer of .*Name a local folder") as error:
        build_text(SPECS[name], Load(source=path))
    assert "\n" not in str(error.value)


def test_tokenizer_that_needs_a_missing_package_gives_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import transformers

    def refuse(*_: object, **__: object) -> None:
        raise ImportError("SiglipTokenizer requires the SentencePiece library")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(MissingPackageError, match="Run: pip install sentencepiece protobuf"):
        auto_tokenizer(TEXT["siglip-b16-224-text"], tmp_path)


def test_tokenizer_with_ids_beyond_the_table_is_refused(folder):
    path, _ = folder("tiny-clip-text")
    tokenizer = SPECS["tiny-clip-text"].tokenizer(SPECS["tiny-clip-text"], None)
    tokenizer.add_tokens(["<beyond>"])
    tokenizer.save_pretrained(path)
    with pytest.raises(CheckpointError, match="ids up to 384, but the text tower has 384 rows"):
        build_text(SPECS["tiny-clip-text"], Load(source=path))


def test_tokenizer_without_padding_token_is_refused(folder):
    path, _ = folder("tiny-clip-text")
    spec = SPECS["tiny-clip-text"]
    tokenizer = spec.tokenizer(spec, path)
    tokenizer.pad_token = None
    with pytest.raises(CheckpointError, match="no padding token"):
        build_text(replace(spec, tokenizer=lambda *_: tokenizer), Load(source=path))
