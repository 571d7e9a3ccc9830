"""Runs that the original code and its Phi-2 fork wrote, against what they made of them (tests/data/prismatic_golden)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import vlm
from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.chat_templates import find_template, fit_template
from vlm.backbones.lora import fold
from vlm.data.chat import encode_chat
from vlm.data.image import load_image, load_tiles, to_tiles
from vlm.data.stream.collate import collate_singly
from vlm.data.stream.examples import Example
from vlm.errors import CheckpointError, ConfigError, DataFormatError, UnknownNameError, VLMError
from vlm.messages import Message
from vlm.models import checkpoint, generate
from vlm.models.foreign.assemble import Sources
from vlm.models.foreign.prismatic import PROMPTS, import_prismatic

GOLDEN = Path(__file__).parents[2] / "data" / "prismatic_golden"
VICUNA, PHI_2 = "golden-vicuna+tiny+stage-finetune+x7", "golden-phi2+tiny+stage-finetune+x7"
LORA = "llava-lvis4v-lrv+my_phi2_siglip_model+stage-finetune+x7"
ALIGN, FULL, LORA_ALIGN = "golden-vicuna+tiny+stage-align+x7", "golden-vicuna+tiny+stage-full-finetune+x7", "my_phi2_siglip_model+stage-align+x7"
BASES = {VICUNA: "vicuna", ALIGN: "vicuna", FULL: "vicuna", PHI_2: "phi2", LORA: "phi2", LORA_ALIGN: "phi2"}
FINETUNED = [VICUNA, PHI_2, LORA]
ROLES = {"human": "user", "gpt": "assistant"}


def sources(run: str, **changed: str) -> Sources:
    base = GOLDEN / BASES[run]
    named = {"vision": GOLDEN / "towers", "language": base / "llm", "tokenizer": base / "tokenizer"} | changed
    return Sources(**{name: str(path) for name, path in named.items()})


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """`imported(run)`: a checkpoint of ours, written once for all tests."""
    done: dict[tuple, Path] = {}

    def write(run: str, **options) -> Path:
        key = (run, *options.items())
        if key not in done:
            done[key] = tmp_path_factory.mktemp("imported") / "model"
            import_prismatic(GOLDEN / run, done[key], sources(run), **options)
        return done[key]

    return write


@pytest.fixture
def opened(imported):
    """`opened(run)`: the model in fp32."""
    return lambda run, **options: vlm.load(imported(run, **options), device="cpu", precision="fp32")


def golden(run: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / run / "golden.npz") as arrays:
        return dict(arrays)


def rows(name: str = "instruct") -> list[dict]:
    return json.loads((GOLDEN / "data" / f"{name}.json").read_text(encoding="utf-8"))


def messages(row: dict) -> list[Message]:
    return [Message(ROLES[turn["from"]], turn["value"]) for turn in row["conversations"]]


def encode(model, talk: list[Message], template=None):
    return encode_chat(
        talk,
        template=template or model.template,
        tokenizer=model.language.tokenizer,
        image_token_id=model.language.image_token_id,
        tokens_per_image=[model.tokens_per_tile] * any("<image>" in message.text for message in talk),
    )


def example(model, row: dict, template=None) -> Example:
    encoded = encode(model, messages(row), template)
    size = model.image_policy.size
    tiles = load_tiles(GOLDEN / "data" / row["image"], model.image_policy)[0] if "image" in row else torch.empty(0, 3, size, size, dtype=torch.uint8)
    return Example(row["id"], encoded.ids, encoded.labels, tiles, hidden=encoded.hidden)


def batch_of(model, examples: list[Example]):
    return collate_singly(examples, pad_id=model.language.tokenizer.pad_token_id)


def text_of(model, ids: torch.Tensor) -> torch.Tensor:
    return ids != model.language.image_token_id


@pytest.mark.parametrize("run", FINETUNED)
def test_ids_and_labels_are_the_originals(opened, run):
    model, expected = opened(run), golden(run)
    for i, row in enumerate(rows()):
        one = example(model, row)
        is_text, length = text_of(model, one.ids), expected["lengths"][i]
        assert one.ids[is_text].tolist() == expected["input_ids"][i, :length].tolist()
        assert one.labels[is_text].tolist() == expected["labels"][i, :length].tolist()
        assert (~is_text).nonzero().flatten().tolist() == (list(range(1, 17)) if "image" in row else [])  # behind the first token
        assert (one.labels[~is_text] == -100).all()


@pytest.mark.parametrize("run", FINETUNED)
@torch.no_grad()
def test_logits_and_loss_are_the_originals(opened, run):
    model, expected = opened(run), golden(run)
    examples = [example(model, row) for row in rows()]
    pixels = torch.cat([one.pixels for one in examples])
    assert torch.equal(pixels, torch.from_numpy(expected["pixel_values"][[0, 2]]))
    torch.testing.assert_close(model.vision(pixels), torch.from_numpy(expected["patch_features"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.connector(model.vision(pixels)), torch.from_numpy(expected["projected_patches"]), atol=1e-5, rtol=0)
    batch = batch_of(model, examples)
    logits = model.language.logits(model.hidden(batch).flatten(0, 1)).unflatten(0, batch.ids.shape)
    for i in (0, 2):
        torch.testing.assert_close(logits[i, model.tokens_per_tile], torch.from_numpy(expected["last_patch_logits"][i]), atol=1e-5, rtol=0)
    for i, one in enumerate(examples):
        positions = expected["logit_positions"][expected["logit_positions"] < expected["lengths"][i]]
        seen = logits[i, : len(one.ids)][text_of(model, one.ids)][positions]
        torch.testing.assert_close(seen, torch.from_numpy(expected["text_logits"][i, : len(positions)]), atol=1e-5, rtol=0)
    loss = model(batch)
    assert int(loss.count) == expected["n_label_tokens"]
    assert float(loss.sum) == pytest.approx(float(expected["loss_sum"]), rel=1e-5)


@pytest.mark.parametrize("run", FINETUNED)
def test_prompts_are_the_originals(opened, imported, run):
    pinned = json.loads(str(golden(run)["prompts_json"]))
    trained, asked = opened(run).template, opened(run, asked=True).template
    for row in rows():
        talk, expected = messages(row), pinned[row["id"]]
        bos = "<s>" if run == VICUNA else ""  # which the tokenizer adds there
        assert "".join(span.text for span in trained.render(talk)) == bos + expected["full"]
        assert "".join(span.text for span in asked.render(talk)) == bos + expected["full"]
        assert "".join(span.text for span in trained.render(talk[:1])).rstrip() == bos + expected["inference"]
        assert "".join(span.text for span in asked.render(talk[:1])).removesuffix(" ") == bos + expected["inference"]


@pytest.mark.parametrize(
    ("run", "asked", "case"),
    [
        *((VICUNA, False, case) for case in ("example0", "example2", "example0_black")),
        *((run, False, f"example{i}_unstripped") for run in (PHI_2, LORA) for i in (0, 2)),
        *((run, True, case) for run in (PHI_2, LORA) for case in ("example0", "example2", "example0_black")),
    ],
)
def test_greedy_answers_are_the_originals(opened, run, asked, case):
    model, expected = opened(run, asked=asked), golden(run)
    row = rows()[int(case[7])]
    picture = load_image(GOLDEN / "data" / row["image"])
    picture = picture.point(lambda _: 0) if "black" in case else picture
    talk = messages(row)[:1]
    ids = encode(model, talk).ids
    assert ids[text_of(model, ids)].tolist() == expected[f"gen_{case}_input_ids"].tolist()
    tokens = expected[f"gen_{case}_tokens"].tolist()
    embeds, mask = generate.left_padded(generate.embed_prompts(model, [generate.Prompt(tuple(talk), (picture,))], 12))
    with torch.inference_mode():
        answer = model.language.generate(embeds, mask, max_new_tokens=12, do_sample=False)[0].tolist()
        first = model.language.model(inputs_embeds=embeds, attention_mask=mask).logits[:, -1]
    assert answer == tokens
    torch.testing.assert_close(first, torch.from_numpy(expected[f"gen_{case}_scores"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("run", FINETUNED)
@torch.inference_mode()
def test_each_pinned_answer_follows_from_its_ids(opened, run):
    """The picture stands behind the first id; `_long` cases may not end within 12 tokens."""
    model, expected = opened(run), golden(run)
    cases = json.loads(str(expected["generate_json"]))
    assert len(cases) == 7
    for case in cases:
        picture = load_image(GOLDEN / "data" / rows()[int(case[7])]["image"])
        picture = picture.point(lambda _: 0) if "black" in case else picture
        patches = model.connector(model.vision(to_tiles(picture, model.image_policy)[0]))
        text = model.language.embed(torch.from_numpy(expected[f"gen_{case}_input_ids"])[None])
        embeds = torch.cat([text[:, :1], patches, text[:, 1:]], dim=1)
        least = {"min_new_tokens": 12} if "long" in case else {}
        settings = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_scores": True} | least
        done = model.language.model.generate(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64), **settings)
        assert done.sequences[0].tolist() == expected[f"gen_{case}_tokens"].tolist(), case
        scores = torch.from_numpy(expected[f"gen_{case}_scores"])
        assert bool(scores.isneginf().any()) == ("long" in case)
        torch.testing.assert_close(done.scores[0], scores, atol=1e-5, rtol=0)


def test_original_prompt_that_is_the_trained_one_is_said(tmp_path):
    done = import_prismatic(GOLDEN / VICUNA, tmp_path / "out", sources(VICUNA), asked=True)
    assert done.notes == ("--prompt original changes nothing with the template prism-vicuna.",)


def test_imported_model_answers_questions(opened):
    picture = load_image(GOLDEN / "data" / rows()[2]["image"])
    assert [opened(run).chat([picture], "What colour is the shape?", max_new_tokens=12) for run in FINETUNED] == ["yellow."] * 3


@torch.no_grad()
def test_trained_vision_backbone_is_not_lost(opened):
    model, expected = opened(FULL), golden(FULL)
    examples = [example(model, row) for row in rows()]
    pixels = torch.cat([one.pixels for one in examples])
    torch.testing.assert_close(model.vision(pixels), torch.from_numpy(expected["patch_features"]), atol=1e-5, rtol=0)
    batch = batch_of(model, [examples[i] for i in (0, 2, 1)])  # picture rows first
    _, before = batch.targets
    logits = model.language.logits(model.hidden(batch).flatten(0, 1)[before])
    torch.testing.assert_close(logits, torch.from_numpy(expected["label_logits"]), atol=1e-5, rtol=0)
    loss = model(batch)
    assert float(loss.sum / loss.count) == pytest.approx(float(expected["loss"]), rel=1e-5)


@torch.no_grad()
def test_captions_of_the_align_stage_have_the_originals_ids_labels_and_loss(opened):
    for run in FINETUNED:
        model, expected = opened(run), golden(run)
        name = PROMPTS[json.loads((GOLDEN / run / "config.json").read_text(encoding="utf-8"))["model"]["llm_backbone_id"]].caption
        template = fit_template(find_template(name), model.language.tokenizer)
        examples = [example(model, row, template) for row in rows("align")]
        for i, one in enumerate(examples):
            is_text, length = text_of(model, one.ids), len(one.ids) - 16
            assert one.ids[is_text].tolist() == expected["align_input_ids"][i, :length].tolist()
            assert one.labels[is_text].tolist() == expected["align_labels"][i, :length].tolist()
        loss = model(batch_of(model, examples))
        assert float(loss.sum / loss.count) == pytest.approx(float(expected["align_loss"]), rel=1e-5)


def test_align_run_describes_pictures_with_the_base_language_model(opened):
    model = opened(ALIGN)
    assert model.template.name == "prism-caption"
    assert model.language.num_logits == 320  # before the table was enlarged
    stored = torch.load(GOLDEN / ALIGN / "checkpoints" / "latest-checkpoint.pt", weights_only=True)["model"]["projector"]
    assert torch.equal(model.connector.readout.weight, stored["projector.2.weight"])
    base = model.language.model.get_input_embeddings().weight
    assert torch.equal(base, load_file(GOLDEN / "vicuna" / "llm" / "model.safetensors")["model.embed_tokens.weight"])


def test_align_run_of_the_fork_describes_pictures_that_are_all_of_the_prompt(tmp_path):
    """Its tokenizer has no BOS, so that nothing stands before the picture. The base is that of its finetune run, which trained adapters alone."""
    stored = torch.load(GOLDEN / LORA / "checkpoints" / "latest-checkpoint.pt", weights_only=True)["model"]["llm_backbone"]
    names = {name: name.removeprefix("llm.base_model.model.").replace(".base_layer", "") for name in stored if ".lora_" not in name}
    base = shutil.copytree(GOLDEN / "phi2" / "llm", tmp_path / "llm")
    save_file({ours: stored[name].contiguous() for name, ours in names.items()}, base / "model.safetensors", metadata={"format": "pt"})
    import_prismatic(GOLDEN / LORA_ALIGN, tmp_path / "out", sources(LORA_ALIGN, language=base))
    model = vlm.load(tmp_path / "out", device="cpu", precision="fp32")
    assert model.template.name == "prism-lora-caption"
    picture = load_image(GOLDEN / "data" / rows()[0]["image"])
    ids = encode(model, [Message("user", "<image>\nDescribe.")]).ids
    assert ids.tolist() == [model.language.image_token_id] * model.tokens_per_tile
    one, batch = (model.generate_batch(prompts, max_new_tokens=6) for prompts in ([([picture], "")], [([picture], ""), ([picture], "x")]))
    assert batch == one * 2
    assert "black" in str(model.check_image_use())
    with pytest.raises(DataFormatError, match=r"The prompt has no tokens: .* Give a picture"):
        model.chat([], "Hello")


def test_adapter_stays_one_and_can_be_folded(opened, imported):
    model = opened(LORA)
    options = model.adapters["language"]
    assert (options.rank, options.scale, options.dropout) == (8, 2.0, 0.05)
    before = model.language.model.model.layers[0].self_attn.q_proj
    weights = torch.load(GOLDEN / LORA / "checkpoints" / "latest-checkpoint.pt", weights_only=True)["model"]["llm_backbone"]
    start = "llm.base_model.model.model.layers.0.self_attn.q_proj."
    expected = weights[f"{start}base_layer.weight"] + 2 * weights[f"{start}lora_B.default.weight"] @ weights[f"{start}lora_A.default.weight"]
    assert hasattr(before, "lora_A")
    fold(model.language.model)
    torch.testing.assert_close(model.language.model.model.layers[0].self_attn.q_proj.weight, expected)


def test_folder_can_be_moved_and_is_whole(imported, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(imported(VICUNA), moved)
    model = vlm.load(moved, device="cpu", precision="fp32")
    assert checkpoint.read_manifest(moved).config.language == f"hf:{moved}/language"
    assert model.language.tokenizer.convert_tokens_to_ids("<PAD>") == 320
    assert set(checkpoint.read_manifest(moved).fingerprints) == {"vision", "language"}


def test_second_picture_is_refused_where_there_is_one_place(opened):
    model = opened(VICUNA)
    picture = load_image(GOLDEN / "data" / rows()[0]["image"])
    with pytest.raises(DataFormatError, match="has one at most; this one has 2"):
        model.chat([picture, picture], "Which?", max_new_tokens=2)


def test_letterbox_and_pad_agree_on_even_differences(opened):
    model = opened(VICUNA)
    picture = load_image(GOLDEN / "data" / rows()[0]["image"])
    assert model.image_policy.mode == "letterbox"
    assert torch.equal(to_tiles(picture, model.image_policy)[0], to_tiles(picture, replace(model.image_policy, mode="pad"))[0])


def test_resize_crop_cuts_where_torchvision_does(tmp_path):
    """The transform of the original code; margins of half a pixel go to the even side, in portrait and landscape."""
    transforms = pytest.importorskip("torchvision.transforms")
    done = import_prismatic(changed_run(tmp_path, image_resize_strategy="resize-crop"), tmp_path / "out", sources(VICUNA))
    policy = vlm.load(done.folder, device="cpu", precision="fp32").image_policy
    noise = np.random.default_rng(0).integers(0, 256, (97, 101, 3), dtype=np.uint8)
    resize, cut = transforms.Resize(policy.size, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(policy.size)
    for width, height in ((64, 67), (65, 64), (50, 83), (101, 67), (97, 64)):
        picture = Image.fromarray(noise[:height, :width])
        original = torch.from_numpy(np.array(cut(resize(picture)))).permute(2, 0, 1)
        assert torch.equal(to_tiles(picture, policy)[0][0], original), (width, height)


def test_tokenizer_gives_the_ids_of_its_source_behind_special_tokens(imported):
    """Llama's of before 2023 has `legacy` in its config, which transformers 5 does not write."""
    source, copy = (transformers.AutoTokenizer.from_pretrained(place) for place in (GOLDEN / "vicuna" / "tokenizer", imported(VICUNA) / "language"))
    assert source.legacy
    for text in ("one</s>two", "one</s> two", "</s>", "<s>one\ntwo"):
        assert copy(text).input_ids == source(text).input_ids, text


# What can go wrong; nothing is written then.


def changed_run(tmp_path: Path, run: str = VICUNA, **values) -> Path:
    """A copy of a run with other values in `model` of its config.json."""
    folder = tmp_path / "run"
    shutil.copytree(GOLDEN / run, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["model"] |= values
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def changed_weights(tmp_path: Path, change, run: str = VICUNA) -> Path:
    folder = changed_run(tmp_path, run)
    path = folder / "checkpoints" / "latest-checkpoint.pt"
    values = torch.load(path, weights_only=True)
    change(values["model"])
    torch.save(values, path)
    return folder


def refuse(path: Path, out: Path, match: str, kind: type[VLMError] = CheckpointError, **changed) -> None:
    with pytest.raises(kind, match=match) as error:
        import_prismatic(path, out, sources(VICUNA, **changed))
    assert "\n" not in str(error.value)
    assert not out.exists() and not out.with_name(out.name + ".tmp").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m["llm_backbone"].pop("llm.model.norm.weight"), r"lacks 1 tensor \(model.norm.weight\) of the language model"),
        (lambda m: m["llm_backbone"].update({"llm.model.extra": torch.zeros(1)}), r"holds 1 tensor \(model.extra\) that the language model"),
        (lambda m: m["llm_backbone"].update({"extra": torch.zeros(1)}), r"holds 1 tensor \(extra\) that belong to no part"),
        (lambda m: m["projector"].pop("projector.0.bias"), "The connector of .* lacks 0.bias"),
        (lambda m: m["projector"].update({"projector.0.scale": torch.zeros(1)}), "has 0.scale, which linear layers do not have"),
        (lambda m: m["projector"].update({"projector.0.weight": torch.zeros(32, 48)}), r"body.0.weight of the connector has shape \(32, 48\)"),
        (lambda m: m["llm_backbone"].update({"llm.model.norm.weight": torch.zeros(16)}), r"model.norm.weight .* shape \(16,\), expected \(32,\)"),
        (lambda m: m.update({"audio": {}}), "modules audio, which are not"),
        (lambda m: m["projector"].update({"projector.0.weight": torch.zeros(32)}), r"has 0.weight of shape \(32,\); a linear layer's has two"),
        (lambda m: m["llm_backbone"].update({"llm.model.norm.weight": "cut"}), "holds 'llm.model.norm.weight' of type str; expected weights"),
        (lambda m: m["llm_backbone"].update({3: torch.zeros(32)}), "holds 3 of type torch.float32; expected weights by name"),
        (lambda m: m["llm_backbone"].update({"llm.model.norm.weight": torch.zeros(32, dtype=torch.int64)}), "of type torch.int64; expected weights"),
    ],
)
def test_each_tensor_is_used_exactly_once(tmp_path, change, match):
    refuse(changed_weights(tmp_path, change), tmp_path / "out", match)


def test_other_configs_are_refused(tmp_path):
    for number, (values, match) in enumerate(
        [
            ({"llm_backbone_id": "vicuna-v15-70b"}, "No language model of Prismatic named 'vicuna-v15-70b'. Did you mean"),
            ({"vision_backbone_id": "siglip-vit-b17"}, "No vision backbone named 'siglip-vit-b17'"),
            ({"image_resize_strategy": "stretch"}, "No image_resize_strategy of Prismatic named 'stretch'"),
            ({"arch_specifier": "no-align+conv"}, "No arch_specifier of Prismatic named 'conv'"),
        ]
    ):
        refuse(changed_run(tmp_path / str(number), **values), tmp_path / "out", match, UnknownNameError)
    refuse(changed_run(tmp_path / "linear", arch_specifier="linear"), tmp_path / "out", "projector of 2 layers, but its config.json says linear")


def test_wrong_and_damaged_folders_are_one_line(tmp_path):
    refuse(tmp_path, tmp_path / "out", "config.json cannot be read")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    refuse(tmp_path, tmp_path / "out", "does not say model.model_id")
    folder = changed_run(tmp_path)
    weights = folder / "checkpoints" / "latest-checkpoint.pt"
    weights.write_bytes(weights.read_bytes()[:100_000])
    refuse(folder, tmp_path / "out", "cannot be read .*cut short")
    weights.rename(weights.with_name("step-000001-epoch-00-loss=1.0000.pt"))
    refuse(folder, tmp_path / "out", r"checkpoints there: step-000001-epoch-00-loss=1.0000.pt")


def test_pickle_with_code_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    folder = changed_run(tmp_path)
    torch.save({"model": {"projector": Trap()}}, folder / "checkpoints" / "latest-checkpoint.pt")
    refuse(folder, tmp_path / "out", "is no file of tensors.*can run code")
    assert not (tmp_path / "ran").exists()


def test_missing_and_other_towers_are_named(tmp_path):
    refuse(GOLDEN / VICUNA, tmp_path / "out", "should hold one tower's", vision=str(tmp_path))
    refuse(GOLDEN / VICUNA, tmp_path / "out", "There is no folder", vision=str(tmp_path / "none"))
    refuse(GOLDEN / VICUNA, tmp_path / "out", "of the language model. Name the language model", language=str(GOLDEN / "phi2" / "llm"))
    refuse(GOLDEN / VICUNA, tmp_path / "out", "No tokenizer at", tokenizer=str(tmp_path))
    with pytest.raises(CheckpointError, match="a grid of 4 x 4 patches, pictures of 224 px have 14 x 14"):
        import_prismatic(
            GOLDEN / FULL, tmp_path / "out", Sources(language=str(GOLDEN / "vicuna" / "llm"), tokenizer=str(GOLDEN / "vicuna" / "tokenizer"))
        )
    heads = tmp_path / "heads"
    shutil.copytree(GOLDEN / "towers", heads)
    values = json.loads((heads / "siglip.json").read_text(encoding="utf-8")) | {"num_heads": 7}
    (heads / "siglip.json").write_text(json.dumps(values), encoding="utf-8")
    refuse(GOLDEN / VICUNA, tmp_path / "out", "config of the vision backbone of .* makes no model", vision=str(heads))
    shutil.copytree(GOLDEN / VICUNA, tmp_path / "out")
    with pytest.raises(CheckpointError, match="exists"):
        import_prismatic(GOLDEN / VICUNA, tmp_path / "out", sources(VICUNA))


# What the golden runs lack: towers side by side, the projector of three layers, Phi-3 under an adapter.


SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 0}
KINDS = {"dino": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.5}, "siglip": {"class_token": False, "global_pool": "map"}}
STATISTICS = {"dino": ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), "siglip": ((0.5,) * 3, (0.5,) * 3)}
FORK = {"model_id": "dino-siglip-phi3-lora-model", "vision_backbone_id": "dinosiglip-vit-so-384px", "llm_backbone_id": "phi3_base"}
FORK |= {"arch_specifier": "no-align+fused-gelu-mlp", "image_resize_strategy": "resize-naive"}


def random(module: nn.Module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


def phi_3():
    """A tiny Phi-3 under an adapter, and a tokenizer that puts BOS first."""
    values = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = transformers.Phi3Config(**values, vocab_size=384, max_position_embeddings=512, bos_token_id=0, eos_token_id=2, pad_token_id=2)
    setting = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"])
    tokenizer = LANGUAGE["tiny-llama"].tokenizer(LANGUAGE["tiny-llama"], None)
    tokenizer.eos_token = "<|endoftext|>"
    return random(peft.get_peft_model(transformers.Phi3ForCausalLM(config), setting)), config, tokenizer


def write_sources(folder: Path, towers: dict[str, nn.Module], *, empty: bool) -> None:
    """The frozen towers with their arguments; with `empty` weights of zero, so that it is seen if they are taken."""
    folder.mkdir()
    for name, tower in towers.items():
        weights = {key: value * (not empty) for key, value in tower.state_dict().items()}
        save_file(weights, folder / f"{name}.safetensors")
        mean, std = STATISTICS[name]
        (folder / f"{name}.json").write_text(json.dumps(SIZE | {"mean": mean, "std": std}), encoding="utf-8")


def write_fork(folder: Path, projector: nn.Module, llm: nn.Module, towers: dict[str, nn.Module]) -> Path:
    modules = {"projector": {f"projector.{name}": tensor for name, tensor in projector.state_dict().items()}}
    modules["llm_backbone"] = {f"llm.{name}": tensor for name, tensor in llm.state_dict().items()}
    if towers:
        modules["vision_backbone"] = {
            f"{name}_featurizer.{key}": value for name, tower in towers.items() for key, value in tower.state_dict().items()
        }
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"model": modules}, folder / "checkpoints" / "latest-checkpoint.pt")
    (folder / "config.json").write_text(json.dumps({"model": FORK}), encoding="utf-8")
    return folder


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's look at transformers
@pytest.mark.parametrize("trained", [False, True])
@torch.no_grad()
def test_phi_3_fork_with_two_towers_and_an_adapter(ours, square, tmp_path, trained):
    timm = pytest.importorskip("timm.models.vision_transformer")
    towers = {name: random(timm.VisionTransformer(**(SIZE | kind))) for name, kind in KINDS.items()}
    projector = random(nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32), nn.GELU(), nn.Linear(32, 32)))
    llm, config, tokenizer = phi_3()
    source = tmp_path / "sources"
    write_sources(source, towers, empty=trained)
    config.save_pretrained(str(source))
    tokenizer.save_pretrained(str(source))
    run = write_fork(tmp_path / "run", projector, llm, towers if trained else {})

    done = import_prismatic(run, tmp_path / "out", Sources(vision=str(source), language=str(source)), lora_alpha=8.0)
    assert (done.config.connector, done.config.template, done.config.lora.language.rank) == ("fused-mlp", "prism-lora-phi-3", 4)
    model = vlm.load(done.folder, device="cpu", precision="fp32")
    logits, text = ours(model, "What colour is it?\n<image>", square)
    assert text.startswith("<s><s><|system|>\nYou are a helpful") and text.endswith("<|end|>\n<|user|>\nWhat colour is it?<|end|>\n<|Assistant|>\n")

    pixels = to_tiles(square, model.image_policy)[0]
    features = []
    for name, tower in towers.items():
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in STATISTICS[name])
        features += tower.get_intermediate_layers((pixels / 255 - mean) / std, n=[1])
    embeds = llm.get_input_embeddings()(tokenizer(text.removeprefix("<s>"), return_tensors="pt").input_ids)
    fused = torch.cat([embeds[:, :1], projector(torch.cat(features, dim=2)), embeds[:, 1:]], dim=1)
    torch.testing.assert_close(logits, llm(inputs_embeds=fused).logits[0], atol=1e-5, rtol=0)


@pytest.fixture
def whole_run(tmp_path):
    """The fork's run as it is archived: its sources lie in the run folder, whose name says nothing, and an earlier checkpoint beside the last."""
    folder = tmp_path / "a run"
    shutil.copytree(GOLDEN / LORA, folder)
    shutil.copytree(GOLDEN / "towers", folder / "towers")
    for name in ("llm", "tokenizer"):
        shutil.copytree(GOLDEN / "phi2" / name, folder / name)
    (folder / "checkpoints" / "step-000001-epoch-00-loss=9.0000.pt").write_bytes(b"not the one to take")
    return folder


def test_sources_in_the_run_folder_are_found_and_named(whole_run, tmp_path):
    done = import_prismatic(whole_run, tmp_path / "out", Sources())
    assert done.notes[0].startswith(f"Sources that lie in the run folder: --vision-source {whole_run / 'towers'}, --language-source")
    assert "alpha: 16 is the fork's, the rank is 8" in done.notes[1]
    picture = load_image(GOLDEN / "data" / rows()[2]["image"])
    assert vlm.load(done.folder, device="cpu", precision="fp32").chat([picture], "What colour is the shape?", max_new_tokens=12) == "yellow."
    named = import_prismatic(whole_run, tmp_path / "named", sources(LORA), lora_alpha=4.0)
    assert not any("Sources" in note or "alpha" in note for note in named.notes)
    assert named.config.lora.language.alpha == 4


def adapted(model, rank: int, names: list[str]) -> None:
    """Put adapters of random values on layers, as peft stores them."""
    state, start = model["llm_backbone"], "llm.base_model.model.model.layers."
    for key in [key for key in state if ".lora_" in key]:
        del state[key]
    for key in [key for key in state if ".base_layer." in key]:
        state[key.replace(".base_layer.", ".")] = state.pop(key)
    generator = torch.Generator().manual_seed(1)
    for name in names:
        for kind in ("weight", "bias"):
            state[f"{start}{name}.base_layer.{kind}"] = state.pop(f"{start}{name}.{kind}")
        rows, columns = state[f"{start}{name}.base_layer.weight"].shape
        state[f"{start}{name}.lora_A.default.weight"] = torch.randn(rank, columns, generator=generator) / 4
        state[f"{start}{name}.lora_B.default.weight"] = torch.randn(rows, rank, generator=generator) / 4


ALL_PHI = [
    f"{i}.{name}" for i in (0, 1) for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2")
]


@pytest.mark.parametrize(("rank", "names"), [(3, ALL_PHI), (16, ["1.self_attn.q_proj", "0.mlp.fc2"])])
@torch.no_grad()
def test_adapters_of_other_ranks_on_other_layers(tmp_path, rank, names):
    run = changed_weights(tmp_path, lambda model: adapted(model, rank, names), LORA)
    done = import_prismatic(run, tmp_path / "out", sources(LORA))
    assert (done.config.lora.language.rank, done.config.lora.language.alpha) == (rank, 16)
    model = vlm.load(done.folder, device="cpu", precision="fp32")
    state = torch.load(run / "checkpoints" / "latest-checkpoint.pt", weights_only=True)["model"]["llm_backbone"]
    plain = {key.removeprefix("llm.base_model.model."): value for key, value in state.items()}
    for name in names:
        start = f"model.layers.{name}."
        for kind in ("weight", "bias"):
            plain[f"{start}{kind}"] = plain.pop(f"{start}base_layer.{kind}")
        plain[f"{start}weight"] = plain[f"{start}weight"] + 16 / rank * plain.pop(f"{start}lora_B.default.weight") @ plain.pop(
            f"{start}lora_A.default.weight"
        )
    reference = transformers.PhiForCausalLM(transformers.AutoConfig.from_pretrained(done.folder / "language"))
    reference.load_state_dict(plain)
    embeds = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(2))
    seen = model.language.model(inputs_embeds=embeds).logits
    torch.testing.assert_close(seen, reference.eval()(inputs_embeds=embeds).logits, atol=1e-5, rtol=1e-5)


def test_adapters_that_ours_has_not_are_named(tmp_path):
    def on_head(model):
        model["llm_backbone"]["llm.base_model.model.lm_head.lora_A.default.weight"] = torch.zeros(8, 32)

    def two_ranks(model):
        name = "llm.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
        model["llm_backbone"][name] = model["llm_backbone"][name][:4]

    for number, (change, match) in enumerate([(on_head, "a LoRA adapter on lm_head; adapters on linear"), (two_ranks, "matrices of rank 4, 8")]):
        run = changed_weights(tmp_path / str(number), change, LORA)
        with pytest.raises(CheckpointError, match=match):
            import_prismatic(run, tmp_path / "out", sources(LORA))
    with pytest.raises(ConfigError, match=r"--lora-alpha is 8, but .* has no LoRA adapter"):
        import_prismatic(GOLDEN / VICUNA, tmp_path / "out", sources(VICUNA), lora_alpha=8.0)
    with pytest.raises(ConfigError, match="positive, finite alpha; got 0"):
        import_prismatic(GOLDEN / LORA, tmp_path / "out", sources(LORA), lora_alpha=0.0)
    assert not list(tmp_path.glob("out*"))
