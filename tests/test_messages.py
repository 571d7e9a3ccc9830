"""Conversations in words against strings that are written out; what each family's template writes is pinned in its own tests."""

import pytest

from vlm.errors import DataFormatError
from vlm.messages import ChatTemplate, Message, Span, count_placeholders

BARE = ChatTemplate(
    name="bare",
    start="{bos}",
    user="U:{content}\n",
    assistant_start="A:",
    assistant="{content}",
    between=";",
    tool="T:{content}\n",
    bos="<s>",
    eos="</s>",
)
ASK, ANSWER, RESULT = Message("user", "Q"), Message("assistant", "A"), Message("tool", 'r"1"')


def written(template: ChatTemplate, *messages: Message) -> str:
    return "".join(span.text for span in template.render(messages))


def test_answers_are_trained_and_nothing_else():
    assert BARE.render((ASK, ANSWER, ASK)) == [
        Span("<s>", False),
        Span("U:Q\n", False),
        Span("A:", False),
        Span("A", True),
        Span(";", False),
        Span("U:Q\n", False),
        Span("A:", False),
    ]


def test_the_assistant_speaks_again_after_the_last_result():
    assert written(BARE, ASK, ANSWER, RESULT) == '<s>U:Q\nA:A;T:r"1"\nA:'
    assert written(BARE, ASK, ANSWER, RESULT, RESULT, ANSWER) == '<s>U:Q\nA:A;T:r"1"\nT:r"1"\nA:A'


def test_results_that_follow_one_another_may_stand_in_one_turn():
    merged = ChatTemplate(name="merged", user="", assistant_start="A:", assistant="{content}", tool_start="(", tool="[{content}]", tool_end=")")
    assert written(merged, ASK, ANSWER, RESULT, RESULT, ANSWER, RESULT) == 'A:A([r"1"][r"1"])A:A([r"1"])A:'


def test_a_result_may_be_written_as_json():
    as_json = ChatTemplate(name="json", user="", assistant_start="", assistant="", tool="{json}")
    assert written(as_json, ASK, ANSWER, Message("tool", 'é "<image>"\n')) == r'"é \"<image>\"\n"'


def test_a_template_without_results_of_tools_says_so():
    bare = ChatTemplate(name="bare", user="", assistant_start="", assistant="")
    with pytest.raises(DataFormatError, match="'bare' has no place for what a tool answers; choose another, or leave such samples out"):
        bare.render((ASK, ANSWER, RESULT))


@pytest.mark.parametrize(
    ("roles", "turn", "expected"),
    [
        (("assistant",), 1, "'user'"),
        (("tool",), 1, "'user'"),
        (("user", "user"), 2, "'assistant'"),
        (("user", "tool"), 2, "'assistant'"),
        (("user", "assistant", "assistant"), 3, "'user' or 'tool'"),
        (("user", "assistant", "document"), 3, "'user' or 'tool'"),
        (("user", "assistant", "tool", "user"), 4, "'assistant' or 'tool'"),
        (("user", "system"), 2, "'assistant'"),
    ],
)
def test_roles_that_do_not_alternate_are_refused(roles, turn, expected):
    with pytest.raises(DataFormatError, match=rf"Turn {turn} of the conversation is by '{roles[-1]}'; roles alternate, so {expected} was expected"):
        BARE.render([Message(role, "x") for role in roles])


def test_answers_lose_outer_white_space_and_questions_keep_it():
    assert written(BARE, Message("user", "\n Q "), Message("assistant", "\n A \n B\t\n")) == "<s>U:\n Q \nA:A \n B"


def test_the_nth_trained_span_is_the_nth_answer_even_if_it_is_empty():
    spans = BARE.render((ASK, Message("assistant", " "), ASK, ANSWER))
    assert [span.text for span in spans if span.trained] == ["", "A"]


def test_a_document_is_trained_up_to_its_end_token():
    text = "\nOne <image> two. "
    assert BARE.render([Message("document", text)]) == [Span("<s>", False), Span(text + "</s>", True)]


def test_a_document_is_alone_in_its_conversation():
    with pytest.raises(DataFormatError, match="A document is alone in its conversation; this one has 2 messages"):
        BARE.render((Message("document", "x"), ASK))


def test_a_document_needs_the_end_token():
    with pytest.raises(DataFormatError, match=r"'bare' ends answers with the tokenizer's EOS token; give it one with `with_tokens`"):
        BARE.with_tokens(bos="<s>", eos="").render([Message("document", "x")])


def test_placeholders_of_all_turns_are_counted():
    assert count_placeholders((Message("user", "<image><image>"), Message("assistant", "< image>"), Message("tool", "a <image>"))) == 3
