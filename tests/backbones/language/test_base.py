"""Building language models from folders, what is said about folders that are something else, and generation against decoding without a cache."""

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import HFCausalLM, build_language
from vlm.backbones.language.chat_templates import TEMPLATES
from vlm.backbones.loading import Load
from vlm.backbones.lora import LoRAOptions
from vlm.errors import CheckpointError, ConfigError
from vlm.messages import Message
from vlm.types import Documents, LanguageModel


@pytest.fixture
def folder(tmp_path: Path):
    """`folder("tiny-phi")`: a model and its tokenizer, saved by transformers."""

    def save(name: str) -> Path:
        spec = LANGUAGE[name]
        spec.build(spec, Load(None)).save_pretrained(tmp_path / name)
        spec.tokenizer(spec, None).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def hidden(lm: HFCausalLM) -> torch.Tensor:
    ids = torch.randint(20, 380, (2, 9), generator=torch.Generator().manual_seed(4))
    return lm(lm.embed(ids), Documents.one_per_row(2, 9))


def test_a_saved_folder_loads_as_the_same_model(tiny, folder, name):
    loaded, made = tiny(name, load=Load(folder(name))), tiny(name)
    assert torch.equal(hidden(loaded), hidden(made))
    assert loaded.tokenizer.get_vocab() == made.tokenizer.get_vocab()
    assert loaded.template == made.template
    assert not loaded.training


def test_a_folder_with_the_image_token_saved_loads_again(tiny, folder):
    path = folder("tiny-llama")
    tiny("tiny-llama", load=Load(path)).tokenizer.save_pretrained(path)
    assert tiny("tiny-llama", load=Load(path)).image_token_id == 384


def test_an_open_name_reads_sizes_and_weights_from_a_folder(tiny, folder, name):
    spec = LANGUAGE[f"hf:{folder(name)}"]
    assert (spec.width, spec.vocab_size, spec.max_length) == (32, 384, 512)
    lm = build_language(spec, Load(spec.source), template=TEMPLATES["pure"])
    assert torch.equal(hidden(lm), hidden(tiny(name)))
    assert lm.template.eos == tiny(name).tokenizer.eos_token


def test_an_open_name_without_a_template_is_refused(folder):
    spec = LANGUAGE[f"hf:{folder('tiny-llama')}"]
    with pytest.raises(ConfigError, match=r"No chat template is known for .*tiny-llama.*--model\.template"):
        build_language(spec, Load(spec.source))


def test_a_folder_of_another_size_is_refused_with_both_values(tiny, folder):
    with pytest.raises(CheckpointError, match=r"sliding_window is None, expected 6"):
        path = folder("tiny-mistral")
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"sliding_window": None}))
        tiny("tiny-mistral", load=Load(path))


def test_a_folder_of_another_family_is_refused_with_both_names(tiny, folder):
    with pytest.raises(CheckpointError, match="model_type is qwen2, expected llama"):
        tiny("tiny-llama", load=Load(folder("tiny-qwen2")))


# config.json of hub repositories, in the spelling of transformers 4 in which they are published
HUB = {
    "phi-2": {"model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"num_key_value_heads": 32, "partial_rotary_factor": 0.4, "rope_scaling": None, "rope_theta": 10000.0, "vocab_size": 51200}
    | {"max_position_embeddings": 2048, "layer_norm_eps": 1e-05, "bos_token_id": 50256, "eos_token_id": 50256, "tie_word_embeddings": False},
    "llama-3.1-8b-instruct": {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05}
    | {"rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    | {"rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": False, "eos_token_id": [128001, 128008, 128009]},
    "mistral-instruct-v0.2-7b": {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768, "rms_norm_eps": 1e-05}
    | {"rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False},
    "phi-3-mini": {"model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
    | {"rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047, "rms_norm_eps": 1e-05, "eos_token_id": 32000, "pad_token_id": 32000},
    "qwen2.5-0.5b-instruct": {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
    | {"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-06}
    | {"rope_theta": 1000000.0, "sliding_window": 32768, "max_window_layers": 21, "use_sliding_window": False, "tie_word_embeddings": True},
    "qwen3-0.6b": {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-06}
    | {"rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "use_sliding_window": False, "tie_word_embeddings": True},
    "smollm2-135m-instruct": {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-05}
    | {"rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True, "pad_token_id": 2},
}  # fmt: skip


@pytest.mark.parametrize("hub_name", HUB)
def test_a_config_in_its_published_spelling_agrees_with_the_spec(tmp_path, hub_name):
    """The folder has no weights, so that loading ends right behind the comparison."""
    (tmp_path / "config.json").write_text(json.dumps(HUB[hub_name]))
    spec = LANGUAGE[hub_name]
    with pytest.raises(CheckpointError, match=r"Weights of .* could not be loaded"):
        spec.build(spec, Load(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(HUB[hub_name] | {"num_hidden_layers": 7}))
    with pytest.raises(CheckpointError, match=rf"num_hidden_layers is 7, expected {HUB[hub_name]['num_hidden_layers']}\.$"):
        spec.build(spec, Load(tmp_path))


def test_weights_that_lack_a_tensor_are_refused(tiny, folder):
    from safetensors.torch import load_file, save_file

    path = folder("tiny-llama")
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        tiny("tiny-llama", load=Load(path))


@pytest.mark.parametrize("source", ["/no/such/folder", "./no/such", Path("runs/none")])
def test_a_missing_folder_is_one_line_with_a_remedy(tiny, source):
    with pytest.raises(CheckpointError, match=r"--model\.language-source") as error:
        tiny("tiny-llama", load=Load(source))
    assert "\n" not in str(error.value)


def test_a_hub_model_without_network_is_one_line_with_a_remedy():
    spec = LANGUAGE["phi-2"]
    with pytest.raises(CheckpointError, match=r"microsoft/phi-2.*--model\.language-source") as error:
        build_language(spec, Load(spec.source))
    assert "\n" not in str(error.value)


def test_a_folder_without_a_tokenizer_is_one_line_with_a_remedy(tiny, tmp_path):
    spec = LANGUAGE["tiny-llama"]
    spec.build(spec, Load(None)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"No tokenizer at .*--model\.language-source") as error:
        tiny("tiny-llama", load=Load(tmp_path))
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_model_is_refused(tiny, folder):
    path = folder("tiny-llama")
    spec = LANGUAGE["tiny-llama"]
    tokenizer = spec.tokenizer(spec, None)
    tokenizer.add_tokens(["brachiosaurus"])
    tokenizer.save_pretrained(path)
    with pytest.raises(CheckpointError, match=r"1 tokens beyond the model's 384 embedding rows, 'brachiosaurus'"):
        tiny("tiny-llama", load=Load(path))


def test_a_tokenizer_without_an_end_token_is_refused():
    spec = LANGUAGE["tiny-llama"]

    def without_end(*arguments):
        tokenizer = spec.tokenizer(*arguments)
        tokenizer.eos_token = None
        return tokenizer

    with pytest.raises(CheckpointError, match="names no end token"):
        build_language(replace(spec, tokenizer=without_end), Load(None))


def test_the_image_token_is_one_token_without_a_row(tiny, name):
    lm = tiny(name)
    assert lm.image_token_id == 384 == lm.model.get_input_embeddings().weight.shape[0]
    ids = lm.tokenizer("a<image><image>b", add_special_tokens=False).input_ids
    assert ids.count(lm.image_token_id) == 2
    assert torch.equal(lm.embed(torch.tensor([ids]))[0, 1], lm.embed(torch.tensor([[0]]))[0, 0])


def test_padding_falls_back_to_the_end_token(tiny, name):
    lm = tiny(name)
    assert lm.tokenizer.pad_token_id == lm.tokenizer.eos_token_id


def test_every_tiny_model_is_a_language_model_by_protocol(tiny, name):
    lm = tiny(name)
    assert isinstance(lm, LanguageModel)
    assert len(lm.blocks()) == 2
    assert lm.width == 32


@torch.no_grad()
def test_the_bias_of_phis_head_is_in_the_logits(tiny):
    lm = tiny("tiny-phi")
    states = torch.zeros(1, 32)
    lm.model.lm_head.bias.copy_(torch.arange(384.0))
    assert torch.equal(lm.logits(states)[0], torch.arange(384.0))


def test_a_rendered_conversation_survives_the_tokenizer(tiny, name):
    lm = tiny(name)
    written = "".join(span.text for span in lm.template.render([Message("user", "Größe? <image>\n"), Message("assistant", "3 m {ok}")]))
    assert lm.tokenizer.decode(lm.tokenizer(written, add_special_tokens=False).input_ids) == written


MEASURE = """
import sys, threading, time
import psutil, torch, transformers
from transformers.models.llama import modeling_llama
from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import causal_lm
from vlm.backbones.loading import Load
process, peak, done = psutil.Process(), [0], threading.Event()
spec = LANGUAGE["hf:" + sys.argv[1]]
torch.ones(256, 256) @ torch.ones(256, 256)
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], process.memory_info().rss)
        time.sleep(0.002)
before = process.memory_info().rss
thread = threading.Thread(target=watch); thread.start()
model = causal_lm(spec, Load(spec.source))
total = sum(p.sum().item() for p in model.parameters())  # touches every page
done.set(); thread.join()
print((peak[0] - before) / sum(p.numel() * 4 for p in model.parameters()))
"""


@pytest.mark.slow
def test_loading_needs_no_second_copy_in_memory(tmp_path):
    import transformers

    config = transformers.LlamaConfig(hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8, vocab_size=16_384)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert 200e6 < (tmp_path / "model.safetensors").stat().st_size < 260e6
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.35


NEW = 8


def random_ids(rows: int, length: int) -> Tensor:
    return torch.randint(20, 380, (rows, length), generator=torch.Generator().manual_seed(length))


def greedy(lm: HFCausalLM, prompt: Tensor, ends: set[int]) -> list[int]:
    """One token after the other, everything computed anew for each."""
    embeds, tokens = lm.embed(prompt[None]), []
    while len(tokens) < NEW and not ends & set(tokens):
        hidden = lm(embeds, Documents.one_per_row(1, embeds.shape[1]))
        tokens.append(int(lm.logits(hidden[:, -1]).argmax()))
        embeds = torch.cat([embeds, lm.embed(torch.tensor([[tokens[-1]]]))], dim=1)
    return tokens


def left_padded(lm: HFCausalLM, prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    length = max(map(len, prompts))
    embeds = torch.stack([torch.cat([torch.full((length - len(p), lm.width), 7.0), lm.embed(p[None])[0]]) for p in prompts])
    mask = torch.stack([torch.cat([torch.zeros(length - len(p)), torch.ones(len(p))]) for p in prompts]).long()
    return embeds, mask


@torch.no_grad()
def test_greedy_with_a_cache_equals_greedy_without(tiny, name):
    lm = tiny(name)
    prompt = random_ids(1, 11)[0]
    new = lm.generate(lm.embed(prompt[None]), torch.ones(1, 11, dtype=torch.long), max_new_tokens=NEW, do_sample=False)
    assert new[0].tolist() == greedy(lm, prompt, set(lm.model.generation_config.eos_token_id))


@torch.no_grad()
def test_a_left_padded_batch_answers_as_each_prompt_alone(tiny, name):
    lm = tiny(name)
    prompts = [random_ids(1, 5)[0], random_ids(1, 12)[0]]
    embeds, mask = left_padded(lm, prompts)
    together = lm.generate(embeds, mask, max_new_tokens=NEW)
    for row, prompt in zip(together, prompts, strict=True):
        alone = lm.generate(lm.embed(prompt[None]), torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=NEW)[0]
        assert row[: len(alone)].tolist() == alone.tolist()


@torch.no_grad()
def test_only_new_tokens_come_back(tiny, name):
    lm = tiny(name)
    assert lm.generate(lm.embed(random_ids(2, 9)), torch.ones(2, 9, dtype=torch.long), max_new_tokens=3, min_new_tokens=3).shape == (2, 3)


@torch.no_grad()
def test_the_templates_end_token_ends_an_answer(tiny):
    lm = tiny("tiny-phi3")
    assert lm.tokenizer.eos_token == "<|endoftext|>"
    head = lm.model.lm_head
    end = lm.tokenizer.convert_tokens_to_ids("<|end|>")
    head.weight.zero_()
    head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(end), 384).float())
    new = lm.generate(lm.embed(random_ids(1, 6)), torch.ones(1, 6, dtype=torch.long), max_new_tokens=5)
    assert new.tolist() == [[end]]


@torch.no_grad()
def test_generation_logs_nothing(tiny, name, caplog):
    lm = tiny(name)
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        lm.generate(lm.embed(random_ids(1, 6)), torch.ones(1, 6, dtype=torch.long), max_new_tokens=2, do_sample=False)
        lm.generate(lm.embed(random_ids(1, 6)), torch.ones(1, 6, dtype=torch.long), max_new_tokens=2, do_sample=True, temperature=0.7, top_p=0.9)
    finally:
        library.removeHandler(caplog.handler)
    assert [record.message for record in caplog.records] == []


@torch.no_grad()
def test_generation_with_an_adapter_uses_it(tiny):
    lm = tiny("tiny-llama", lora=LoRAOptions(rank=4, alpha=8.0, dropout=0.0, targets="all-linear"))
    prompt, mask = lm.embed(random_ids(1, 11)), torch.ones(1, 11, dtype=torch.long)
    before = lm.generate(prompt, mask, max_new_tokens=NEW)
    for path, parameter in lm.named_parameters():
        if "lora_B" in path:
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    after = lm.generate(prompt, mask, max_new_tokens=NEW)
    assert not torch.equal(before, after)
    assert after[0].tolist() == greedy(lm, random_ids(1, 11)[0], {1})


@pytest.mark.parametrize("rows", [1, 2])
def test_two_threads_may_train_and_generate_on_one_model(tiny, rows):
    """Nothing is switched between the two, so neither sees the other's attention."""
    lm = tiny("tiny-mistral")
    embeds, mask = lm.embed(random_ids(rows, 20)).detach(), torch.ones(rows, 20, dtype=torch.long)
    docs = Documents(starts=torch.arange(0, rows * 20 + 1, 10), positions=torch.arange(10).repeat(rows * 2).view(rows, 20))
    hidden, new = lm(embeds, docs), lm.generate(embeds, mask, max_new_tokens=NEW)
    with ThreadPoolExecutor(2) as pool:
        hiddens = [pool.submit(lm, embeds, docs) for _ in range(20)]
        news = [pool.submit(lm.generate, embeds, mask, max_new_tokens=NEW) for _ in range(5)]
        assert all(torch.equal(future.result(), hidden) for future in hiddens)
        assert all(torch.equal(future.result(), new) for future in news)
