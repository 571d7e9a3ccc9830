"""How a question becomes a prompt, and what a real model makes of it."""

import pytest
import torch
from PIL import Image

from vlm.conf.schema import VisionLanguageConfig
from vlm.data.questions import QUESTIONS
from vlm.data.questions.base import Question
from vlm.errors import ConfigError, DataFormatError
from vlm.evaluate.asking import ModelAnswerer, Wording, likeliest, prompt_of, refuse_unasked
from vlm.messages import Message
from vlm.models.build import build
from vlm.models.generate import Sampling, generate


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for value, path in enumerate(paths):
        Image.new("RGB", (8, 8), (value, 0, 0)).save(path)
    return paths


def wording(benchmark):
    spec = QUESTIONS[benchmark]
    return Wording(spec.prompt, spec.choice, spec.open_prompt)


def question(**values):
    return Question(**{"id": "1", "text": "What is it?", "images": ()} | values)


def test_prompts_of_the_benchmarks_are_llavas_and_mmmus(pictures):
    short = prompt_of(question(images=tuple(pictures[:1])), wording("vqav2"))
    assert short.messages[-1].text == "<image>\nWhat is it?\nAnswer the question using a single word or phrase."
    choices = question(choices=("cat", "dog"))
    letters = "Answer with the option's letter from the given choices directly."
    assert wording("scienceqa").text(choices) == f"What is it?\nA. cat\nB. dog\n{letters}"
    assert wording("mmmu").text(choices) == f"What is it?\n\n(A) cat\n(B) dog\n\n{letters}"
    assert wording("mmmu").text(question()) == "What is it?\n\nAnswer the question using a single word or phrase."
    assert wording("questions").text(question(text="Use {braces}?")) == "Use {braces}?"


def test_numbered_pictures_stand_where_text_and_options_name_them(pictures):
    asked = question(text="<image 3> or", choices=("<image 1>", "<image 3>"), images=tuple(pictures), numbered=True)
    prompt = prompt_of(asked, Wording("{question}\n{choices}"))
    assert prompt.messages[-1].text == "<image> or\nA. <image>\nB. <image>"
    assert [image.getpixel((0, 0))[0] for image in prompt.images] == [2, 0, 2]


def test_a_system_text_comes_first_and_placeholders_stay(pictures):
    prompt = prompt_of(question(text="In <image>?", images=tuple(pictures[:1]), system="Be brief."), Wording("{question}"))
    assert prompt.messages == (Message("system", "Be brief."), Message("user", "In <image>?"))
    with pytest.raises(DataFormatError, match="1 <image> placeholders for 2 pictures"):
        prompt_of(question(text="In <image>?", images=tuple(pictures[:2])), Wording("{question}"))


def test_wordings_that_leave_something_out_are_refused():
    with pytest.raises(ConfigError, match=r"has \{answer\}; it may have \{question\} and \{choices\}"):
        Wording("{question} {answer}")
    with pytest.raises(ConfigError, match="is no format"):
        Wording("{question")
    with pytest.raises(ConfigError, match="no place for the question of '1'"):
        refuse_unasked(Wording("Describe it."), [question()])
    with pytest.raises(ConfigError, match="no place for the choices of '1'"):
        refuse_unasked(Wording("{question}"), [question(choices=("a", "b"))])
    refuse_unasked(Wording("Describe it."), [question(text="")])


@pytest.fixture(scope="module")
def answerer():
    torch.manual_seed(0)
    return ModelAnswerer(build(VisionLanguageConfig(vision="tiny-clip", language="tiny-qwen2"), precision="fp32"))


def test_a_model_answers_as_it_generates_and_its_prompt_is_written_in_full(answerer, pictures):
    prompts = [prompt_of(question(images=(path,)), Wording("{question}")) for path in pictures[:2]]
    assert answerer.answer(prompts, 4) == generate(answerer.model.eval(), prompts, Sampling(max_new_tokens=4))
    written = answerer.write(prompts[0].messages)
    assert written.startswith("<|im_start|>system") and "<image>\nWhat is it?" in written and written.endswith("<|im_start|>assistant\n")


def test_the_likeliest_candidate_wins_and_values_that_are_not_finite_are_refused(answerer, pictures):
    prompts = [prompt_of(question(images=(path,)), Wording("{question}")) for path in pictures[:2]]
    found = likeliest(answerer, prompts, ("A", "B", "C"))
    scores = answerer.log_probs(prompts, ("A", "B", "C"))
    assert [letter for letter, _ in found] == ["ABC"[i] for i in scores.argmax(1).tolist()]
    assert list(found[0][1].values()) == pytest.approx(scores[0].tolist())

    class Broken(ModelAnswerer):
        def log_probs(self, prompts, answers):
            return torch.full((len(prompts), len(answers)), torch.nan)

    with pytest.raises(DataFormatError, match="not finite"):
        likeliest(Broken(answerer.model), prompts, ("A", "B"))
