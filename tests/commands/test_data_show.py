import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vlm.commands import data_show
from vlm.commands.data_show import main
from vlm.conf.schema import TrainConfig
from vlm.data.page import look
from vlm.data.reader import open_dataset
from vlm.data.stream.examples import ChatExamples
from vlm.errors import ConfigError, UnknownNameError, VLMError
from vlm.models.build import build


def show(data: Path | str, *arguments: str | Path, preset: str = "tiny/align") -> None:
    main([str(data), "--preset", preset, *map(str, arguments)])


def test_page_is_written_and_its_place_said(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "pages" / "a.html"
    show(data, "-n", "3", "--out", page)
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == str(page)
    text = page.read_text(encoding="utf-8")
    assert text.count('<section class="card">') == 3
    assert [
        word for word in ("tiny-siglip + mlp2x-gelu + tiny-llama", "vicuna-v1", "32 x 32 pixels", "8 samples", "512 tokens") if word not in text
    ] == []


def test_text_is_printed_and_no_page_is_written(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    show(data, "-n", "100", "--text")
    said = capsys.readouterr().out
    assert "USER: [image 1: 16 tokens]" in said and "The color is red.</s>" in said
    assert list(tmp_path.iterdir()) == []


def test_same_seed_shows_the_same_samples(data: Path, capsys: pytest.CaptureFixture[str]):
    said = []
    for seed in ("1", "1", "2"):
        show(data, "-n", "3", "--text", "--seed", seed)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_cards_hold_what_the_loader_of_the_built_model_gives(data: Path, tiny: Callable[..., TrainConfig]):
    model = build(tiny("align").model, precision="fp32")
    samples = open_dataset(str(data), data_root=data.parent)
    language = model.language
    examples = ChatExamples(
        samples,
        template=language.template,
        tokenizer=language.tokenizer,
        image_token_id=language.image_token_id,
        policy=model.image_policy,
        tokens_per_image=model.tokens_per_image,
        max_length=language.max_length,
    )
    encoder = data_show._encoder(data_show._parse([str(data), "--preset", "tiny/align"]))
    for i, sample in enumerate(samples):
        card, example = look(sample, encoder), examples[i]
        assert [piece.id for piece in card.pieces for _ in range(piece.num_tokens)] == example.ids.tolist()
        assert [piece.label for piece in card.pieces for _ in range(piece.num_tokens)] == example.labels.tolist()
        assert [picture.tiles.tolist() for picture in card.pictures] == example.pixels.unsqueeze(1).tolist()


def test_no_weights_are_loaded(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    import transformers

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were asked for")

    for name in ("from_config", "from_pretrained"):
        monkeypatch.setattr(transformers.AutoModelForCausalLM, name, refuse)
    show(data, "--text")
    assert "tiny-llama" in capsys.readouterr().out


def test_other_parts_and_template_change_the_tokens(data: Path, capsys: pytest.CaptureFixture[str]):
    show(data, "-n", "100", "--text", "--model.language", "tiny-qwen2", "--model.connector", "pixel-shuffle-2x", "--template", "chatml")
    said = capsys.readouterr().out
    assert "[image 1: 4 tokens]" in said and "The color is red.<|im_end|>" in said


def test_tokenizer_comes_from_a_folder(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from transformers import AutoTokenizer

    from vlm.backbones.language import LANGUAGE

    spec = LANGUAGE["tiny-phi"]
    spec.tokenizer(spec, None).save_pretrained(tmp_path / "phi")
    assert AutoTokenizer.from_pretrained(tmp_path / "phi")
    show(data, "-n", "100", "--text", "--model.language-source", tmp_path / "phi", preset="phi2-siglip/finetune")
    said = capsys.readouterr().out
    assert "Instruct: [image 1: 729 tokens]" in said and "The color is red.<|endoftext|>" in said


def test_faulty_sample_is_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    row = {"id": "x", "image": "gone.png", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]}
    (tmp_path / "data.json").write_text(json.dumps([row]), encoding="utf-8")
    show(tmp_path / "data.json", "--out", tmp_path / "page.html")
    assert "warnings: 1" in capsys.readouterr().out
    assert "There is no image file" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_too_long_conversation_says_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    turns = [{"from": ("human", "gpt")[i % 2], "value": "word " * 20} for i in range(10)]
    turns[0]["value"] = "<image>"
    (tmp_path / "data.json").write_text(json.dumps([{"id": "x", "image": "a.png", "conversations": turns}]), encoding="utf-8")
    show(tmp_path / "data.json", "--max-length", "400", "--text")
    assert "dropped to fit into 400 tokens" in capsys.readouterr().out


def test_without_a_preset_the_presets_are_named(data: Path):
    with pytest.raises(ConfigError, match=r"vlm data show DATASET --preset PRESET`\. Presets: demo/align"):
        main([str(data)])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(["--preset", "tiny/algin"], UnknownNameError), (["--preset", "tiny/align", "--template", "vicuna"], UnknownNameError)],
)
def test_unknown_names_are_refused(data: Path, arguments: list[str], error: type[VLMError]):
    with pytest.raises(error, match="Did you mean"):
        main([str(data), *arguments])


def test_page_is_opened_if_asked_for(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import webbrowser

    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    show(data, "-n", "1", "--out", tmp_path / "page.html", "--open")
    assert opened == [(tmp_path / "page.html").resolve().as_uri()]


def test_help_needs_no_preset(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "--model.language-source" in capsys.readouterr().out


def test_split_is_chosen_and_is_for_one_dataset(data: Path):
    with pytest.raises(ConfigError, match=r"write each with its own: a@test,b@test"):
        show(f"{data},{data}", "--split", "test")
    with pytest.raises(UnknownNameError, match="No dataset named 'easy-vqqa'"):
        show("easy-vqqa", "--split", "test")


def test_page_that_cannot_be_written_names_the_flag(data: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"Cannot write .*page \(.*\)\. Choose another file with --out"):
        (tmp_path / "page").mkdir()
        show(data, "-n", "1", "--out", tmp_path / "page")


def test_jpegs_are_decoded_as_the_stage_decodes_them(data: Path):
    encoders = [data_show._encoder(data_show._parse([str(data), "--preset", "tiny/align", *flags])) for flags in ([], ["--reduced-jpeg"])]
    assert [encoder.policy.reduced_jpeg for encoder in encoders] == [False, True]
