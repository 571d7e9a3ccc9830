"""The tokenizer that an export has, on prompts as they are rendered, against the ids of the model's own."""

from pathlib import Path

import pytest
import transformers

from vlm.data.chat import encode_chat
from vlm.export.folder import exported_tokenizer
from vlm.messages import IMAGE_PLACEHOLDER, ChatTemplate, Message
from vlm.models.foreign.llava import _tokenize_as_llava

VICUNA = Path(__file__).parents[1] / "data" / "prismatic_golden" / "vicuna" / "tokenizer"


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("as_llava", [True, False])
@pytest.mark.parametrize(
    "content", ["A chat", "<image>\ntwo", "</s>one", "\nthree", "a <s>b", "<s>b", "a\n<s>b", "a </s><s>[b", "<image><s>b", " four", "▁5"]
)
def test_rendered_text_has_the_models_ids(answerer, tmp_path, legacy, content, as_llava):
    """Llama's tokenizer adds a space to the beginning of its text, behind BOS; older ones do so behind every special token."""
    own = transformers.AutoTokenizer.from_pretrained(VICUNA, legacy=legacy)
    if as_llava:
        _tokenize_as_llava(own, legacy=legacy)
    own.add_special_tokens({"additional_special_tokens": [IMAGE_PLACEHOLDER]}, replace_extra_special_tokens=False)
    language = answerer().language
    language.tokenizer = own
    exported_tokenizer(language, "").save_pretrained(tmp_path)
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path)
    exported.save_pretrained(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    image = own.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    template = ChatTemplate(name="any", start="<s>", user="{content}", assistant_start="", assistant="{content}</s>")
    ids = encode_chat(
        [Message("user", content)], template=template, tokenizer=own, image_token_id=image, tokens_per_image=[1] * content.count(IMAGE_PLACEHOLDER)
    ).ids.tolist()
    assert exported(f"<s>{content}").input_ids == ids
    assert again(f"<s>{content}").input_ids == ids
    assert own(content).input_ids == ids
    assert exported.decode(ids, skip_special_tokens=True) == own.decode(ids, skip_special_tokens=True)
