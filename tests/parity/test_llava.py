"""Our assembled model against transformers' LLaVA with the same weights, in fp32; labels against LLaVA's rule, restated."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.backbones.language import LANGUAGE
from vlm.backbones.vision import VISION
from vlm.conf.schema import VisionLanguageConfig
from vlm.data.chat import encode_chat
from vlm.data.stream.collate import collate_singly
from vlm.data.stream.examples import Example
from vlm.messages import Message
from vlm.models.build import build
from vlm.models.vision_language import VisionLanguageModel
from vlm.types import IGNORE_INDEX, ChatBatch

PAIRS = [("tiny-clip", "tiny-llama"), ("tiny-siglip", "tiny-qwen2"), ("tiny-siglip", "tiny-phi")]
STAND_IN = 11  # transformers needs an image token with an embedding row; ours has none, and this id is in no text below

TALKS = [
    [  # two pictures, the second in the middle of a sentence
        Message("user", "<image>\nWhat color is the circle?"),
        Message("assistant", "blue"),
        Message("user", "Is <image> in the image?"),
        Message("assistant", "Yes, the shape is gray."),
    ],
    [Message("user", "Is there a red square?"), Message("assistant", "No")],
    [Message("user", "What <image><image> shape?"), Message("assistant", "A yellow rectangle.")],
]


def compose(vision: str, language: str) -> VisionLanguageModel:
    model = build(VisionLanguageConfig(vision=vision, language=language, connector="mlp2x-gelu"), precision="fp32")
    head = model.language.model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    return model


def llava_of(model: VisionLanguageModel, vision: str, language: str) -> torch.nn.Module:
    """transformers' LLaVA, built from the configs alone, with our weights."""
    import transformers

    kind = "clip" if vision == "tiny-clip" else "siglip"
    text = dict(LANGUAGE[language].architecture)
    config = transformers.LlavaConfig(
        vision_config={"model_type": f"{kind}_vision_model"} | dict(VISION[vision].architecture),
        text_config=transformers.AutoConfig.for_model(text.pop("model_type"), **text),
        image_token_index=STAND_IN,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if kind == "clip" else "full",
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
    )
    llava = transformers.LlavaForConditionalGeneration(config).eval()
    llava.model.vision_tower.load_state_dict(model.vision.model.state_dict())
    llava.model.multi_modal_projector.linear_1.load_state_dict(model.connector.body[0].state_dict())
    llava.model.multi_modal_projector.linear_2.load_state_dict(model.connector.readout.state_dict())
    llava.model.language_model.load_state_dict(model.language.decoder.state_dict())
    llava.lm_head.weight.data.copy_(model.language.model.get_output_embeddings().weight)
    return llava


def make_batch(model: VisionLanguageModel) -> ChatBatch:
    generator = torch.Generator().manual_seed(1)
    examples = []
    for i, talk in enumerate(TALKS):
        count = sum(message.text.count("<image>") for message in talk)
        encoded = encode_chat(
            talk,
            template=model.template,
            tokenizer=model.language.tokenizer,
            image_token_id=model.language.image_token_id,
            tokens_per_image=[model.tokens_per_tile] * count,
        )
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        examples.append(Example(id=str(i), ids=encoded.ids, labels=encoded.labels, pixels=pixels))
    return collate_singly(examples, pad_id=model.language.tokenizer.pad_token_id)


def pixel_values(batch: ChatBatch, vision: str) -> Tensor:
    from transformers import SiglipImageProcessorPil

    spec = VISION[vision]
    processor = SiglipImageProcessorPil(do_resize=False, image_mean=list(spec.mean), image_std=list(spec.std))
    return processor(list(batch.pixels.permute(0, 2, 3, 1).numpy()), return_tensors="pt", input_data_format="channels_last").pixel_values


def real_tokens(model: VisionLanguageModel) -> Tensor:
    """1 where a row has a token, 0 where it is padded, from the lengths of the conversations."""
    rows = []
    for talk in TALKS:
        text = "".join(span.text for span in model.template.render(talk))
        count = text.count("<image>")
        rows.append(len(model.language.tokenizer(text, add_special_tokens=False).input_ids) + count * (model.tokens_per_tile - 1))
    return (torch.arange(max(rows)) < torch.tensor(rows)[:, None]).long()


@pytest.mark.parametrize(("vision", "language"), PAIRS)
def test_logits_and_loss_are_those_of_transformers_llava(vision, language):
    model = compose(vision, language)
    batch, mask = make_batch(model), real_tokens(model)
    assert mask.sum(1).unique().numel() == 3  # rows of different length
    image = model.language.image_token_id
    assert not (batch.ids == STAND_IN).any()
    theirs = batch.ids.masked_fill(batch.ids == image, STAND_IN)
    with torch.no_grad():
        ours = model.language.logits(model.hidden(batch).flatten(0, 1)).unflatten(0, batch.ids.shape)
        loss = model(batch)
        out = llava_of(model, vision, language)(
            input_ids=theirs, attention_mask=mask, pixel_values=pixel_values(batch, vision), labels=batch.labels, use_cache=False
        )
    bias = model.language.model.get_output_embeddings().bias  # transformers' LLaVA has a head without one
    expected = out.logits if bias is None else out.logits + bias
    torch.testing.assert_close(ours[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)
    mean = out.loss
    if bias is not None:
        mean = F.cross_entropy(expected[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(loss.sum / loss.count, mean, atol=1e-5, rtol=1e-5)


def test_phi_in_transformers_llava_differs_by_exactly_the_bias_of_the_head():
    model = compose("tiny-siglip", "tiny-phi")
    batch = make_batch(model)
    theirs = batch.ids.masked_fill(batch.ids == model.language.image_token_id, STAND_IN)
    with torch.no_grad():
        ours = model.language.logits(model.hidden(batch)[0, :5])
        out = llava_of(model, "tiny-siglip", "tiny-phi")(input_ids=theirs, pixel_values=pixel_values(batch, "tiny-siglip"), use_cache=False)
    difference = ours - out.logits[0, :5]
    torch.testing.assert_close(difference, model.language.model.lm_head.bias.expand_as(difference), atol=1e-5, rtol=1e-5)


def llava_v1_labels(text: str, tokenizer, image: int, tokens_per_image: int) -> tuple[list[int], list[int]]:
    """LLaVA's preprocess_v1 on the rendered text: everything is a target but the instruction of each round, up to and with "ASSISTANT:"."""
    ids, labels = [], []
    for round_text in text.split("</s>")[:-1]:
        instruction = round_text.split("ASSISTANT:")[0] + "ASSISTANT:"
        masked = len(tokenizer(instruction, add_special_tokens=False).input_ids)
        tokens = tokenizer(round_text + "</s>", add_special_tokens=False).input_ids
        for i, token in enumerate(tokens):
            copies = tokens_per_image if token == image else 1
            ids += [token] * copies
            labels += [IGNORE_INDEX if i < masked or token == image else token] * copies
    return ids, labels


@pytest.mark.parametrize("row", range(len(TALKS)))
def test_labels_are_those_of_llava(row):
    model = compose("tiny-clip", "tiny-llama")
    batch, tokenizer = make_batch(model), model.language.tokenizer
    text = "".join(span.text for span in model.template.render(TALKS[row]))
    ids, labels = llava_v1_labels(text, tokenizer, model.language.image_token_id, model.tokens_per_tile)
    assert batch.ids[row, : len(ids)].tolist() == ids
    assert batch.labels[row].tolist() == labels + [IGNORE_INDEX] * (batch.ids.shape[1] - len(ids))
