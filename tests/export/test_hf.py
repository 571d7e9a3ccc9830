"""Models that answer in transformers: equal there, with prompts, tokens and pictures of their own; nothing left behind where they are not."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer, GenerationConfig, LlavaForConditionalGeneration

from vlm.errors import CheckpointError, ConfigError
from vlm.export import hf
from vlm.export.answers_parity import AnswerParity
from vlm.export.hf import export_hf
from vlm.export.parity import picture
from vlm.models.generate import ask, generate
from vlm.models.sampling import Sampling

COMPOSITIONS = [
    ("tiny-clip", "tiny-llama", "mlp2x-gelu", {"resize": "pad", "rank": 4}),
    ("tiny-siglip", "tiny-qwen2", "linear", {"resize": "crop"}),
    ("tiny-siglip", "tiny-qwen3", "standardized-mlp2x", {"feature_layer": -1}),
    ("tiny-clip", "tiny-phi3", "mlp:8@silu", {"template": "caption"}),
    ("tiny-clip", "tiny-mistral", "mlp2x-gelu", {"template": "pure"}),
    ("tiny-siglip", "tiny-phi", "mlp2x-gelu", {"template": "prism-phi-2-asked"}),  # the bias of its head is zero
]


@pytest.mark.parametrize(("vision", "language", "connector", "others"), COMPOSITIONS, ids=[language for _, language, *_ in COMPOSITIONS])
def test_export_is_the_model(answerer, tmp_path, vision, language, connector, others):
    done = export_hf(answerer(vision, language, connector, **others), tmp_path / "out")
    assert done.parity.is_equal
    assert done.parity.pixels["pil"] == done.parity.picture["pil"] == 0
    assert done.lines()[1].startswith("image processor torchvision: pixel values differ by up to ") and done.parity.pixels["torchvision"] < 0.1
    assert done.lines()[2] == "image processor pil: pixel values differ by up to 0, logits by 0"


@pytest.mark.parametrize(
    ("largest", "logits", "tokens", "equal"),
    [(40.0, 0.00399, 32, True), (40.0, 0.00401, 32, False), (0.5, 0.000099, 32, True), (0.5, 0.000101, 32, False), (40.0, 0.0, 31, False)],
)
def test_logits_may_differ_by_a_ten_thousandth_of_the_largest_or_of_one_and_tokens_not_at_all(
    answerer, tmp_path, monkeypatch, largest, logits, tokens, equal
):
    measured = AnswerParity(prompts=True, ids=True, logits=logits, largest=largest, tokens=tokens, num_prompts=2, pixels={}, picture={})
    assert measured.is_equal is equal
    monkeypatch.setattr(hf, "compare", lambda *_: measured)
    if equal:
        assert export_hf(answerer(), tmp_path / "out").parity is measured
    else:
        with pytest.raises(CheckpointError, match=rf"is not equal to the model.*differ by up to {logits:.2g} .*{tokens} of 32 greedy tokens"):
            export_hf(answerer(), tmp_path / "out")
    assert (tmp_path / "out").exists() is equal


@pytest.mark.parametrize("logits", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_not_equal(logits):
    assert not AnswerParity(prompts=True, ids=True, logits=logits, largest=1.0, tokens=32, num_prompts=2, pixels={}, picture={}).is_equal


def test_answers_of_a_user_of_transformers_are_those_of_our_chat(answerer, tmp_path):
    """All of it through the folder: picture, chat template in parts, tokenizer, generation config."""
    model = answerer("tiny-clip", "tiny-llama", resize="pad", rank=2)
    ours = generate(model, [ask([picture()], "What color?")], Sampling(max_new_tokens=12))[0]
    export_hf(model, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", dtype="auto").eval()
    talk = [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "What color?"}]}]
    whole = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    text = processor.apply_chat_template(talk, add_generation_prompt=True)
    in_two_steps = processor(images=picture(), text=text, return_tensors="pt")
    assert torch.equal(whole["input_ids"], in_two_steps["input_ids"])
    answer = llava.generate(**in_two_steps, max_new_tokens=12)
    said = processor.decode(answer[0, in_two_steps["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert said == ours != ""


def test_files_are_those_that_other_readers_look_for(answerer, tmp_path):
    model = answerer("tiny-clip", "tiny-llama")
    export_hf(model, tmp_path / "out")
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"preprocessor_config.json", "processor_config.json"}
    read = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    assert read["tokenizer_config.json"]["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert read["preprocessor_config.json"]["image_processor_type"] == "CLIPImageProcessor"
    assert read["preprocessor_config.json"]["crop_size"] == {"height": 32, "width": 32}  # by which the number of image tokens is computed
    processor = read["processor_config.json"]
    assert [processor[key] for key in ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy")] == [8, 1, "default"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("a").input_ids[0] != tokenizer.bos_token_id  # the chat template writes BOS
    assert tokenizer.convert_tokens_to_ids("<image>") == read["config.json"]["image_token_index"]
    assert GenerationConfig.from_pretrained(tmp_path / "out").suppress_tokens == list(range(384, 448))


def test_scaled_positions_are_kept_in_the_words_of_transformers_4_too(answerer, tmp_path):
    model = answerer("tiny-clip", "tiny-llama")
    rope = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = model.language.model.config
    config.rope_parameters = rope | {"original_max_position_embeddings": 64}
    model.language.decoder.rotary_emb = type(model.language.decoder.rotary_emb)(config)
    assert export_hf(model, tmp_path / "out").parity.is_equal
    text = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    assert text["rope_theta"] == 10_000
    assert text["rope_scaling"] == text["rope_parameters"] == config.rope_parameters
    assert "id2label" not in text


def test_bias_is_refused_and_its_measure_is_given_if_allowed(answerer, tmp_path):
    model = answerer(language="tiny-phi")
    torch.nn.init.normal_(model.language.model.lm_head.bias, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match=r"head has a bias.*`--with-code` writes|`--with-code`.*`--allow-lossy` keeps"):
        export_hf(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = export_hf(model, tmp_path / "out", allow_lossy=True)
    largest = float(model.language.model.lm_head.bias.abs().max())
    assert done.parity.logits == pytest.approx(largest, rel=1e-4)
    assert not done.parity.is_equal
    assert "head has a bias" in "\n".join(done.lines())


def test_template_of_turns_is_refused_because_later_turns_have_other_tokens(answerer, tmp_path):
    model = answerer("tiny-siglip", "tiny-llama", template="prism-phi-2")
    with pytest.raises(ConfigError, match="'prism-phi-2' tokenizes turns one by one"):
        export_hf(model, tmp_path / "out")
    done = export_hf(model, tmp_path / "out", allow_lossy=True)
    assert (done.parity.prompts, done.parity.ids, done.parity.tokens) == (True, False, 32)


def test_letterbox_is_padded_and_its_difference_is_measured(answerer, tmp_path):
    done = export_hf(answerer("tiny-siglip", "tiny-llama", resize="letterbox"), tmp_path / "out")
    assert done.parity.is_equal
    assert 0 < done.parity.pixels["pil"] < 0.5  # the picture has an odd number of rows, so one border is a pixel larger


def test_stored_type_is_compared_with_the_model_as_well(answerer, tmp_path):
    done = export_hf(answerer("tiny-clip"), tmp_path / "out", dtype="bf16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert done.parity.is_equal
    assert done.rounding is not None
    assert 0 < done.rounding.logits < 0.5


@pytest.mark.parametrize("broken", ["weights", "template", "interrupt"])
def test_export_that_is_another_model_leaves_nothing(answerer, tmp_path, monkeypatch, broken):
    write = hf.write_llava

    def spoil(model, folder, dtype):
        notes = write(model, folder, dtype)
        if broken == "interrupt":
            raise KeyboardInterrupt
        if broken == "template":
            (folder / "chat_template.jinja").write_text("{{- messages[0]['content'] -}}", encoding="utf-8")
        else:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"vision_feature_layer": -1}), encoding="utf-8")
        return notes

    monkeypatch.setattr(hf, "write_llava", spoil)
    expected = KeyboardInterrupt if broken == "interrupt" else CheckpointError
    with pytest.raises(expected, match=None if broken == "interrupt" else "is not equal to the model, so .* was removed"):
        export_hf(answerer(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_existing_folder_is_kept(answerer, tmp_path):
    (tmp_path / "note").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"exists. Name a folder that"):
        export_hf(answerer(), tmp_path)
    assert (tmp_path / "note").read_text(encoding="utf-8") == "mine"
