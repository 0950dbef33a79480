"""Templates of every kind: the learned characters are shown in the template's own rendering, or the row is refused."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from codetune.data.chat import FAMILIES, chat_template, render_chat
from codetune.data.own_template import RenderedChat, render_by_tokenizer
from codetune.errors import ModelError
from codetune.project.sections import LearnedAnswers
from codetune.records import Message
from tests.model.builders import byte_tokenizer

ONE = (Message("user", "hi"), Message("assistant", "yo"))
TWO = (*ONE, Message("user", "ho"), Message("assistant", " ya\n"))
SYSTEM = (Message("system", "Be brief."), *TWO)
THOUGHT = (Message("user", "hi"), Message("assistant", "<think>\nWell.\n</think>\n\nyo"), *TWO[2:])

TURN = "<{{ m['role'] }}>{{ m['content'] }}</s>\n"
LOOP = "{% for m in messages %}" + TURN + "{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"
PLAIN = LOOP + PROMPT
TRIMMED = PLAIN.replace("m['content']", "m['content'] | trim")
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<system>Help.</s>\n{% endif %}" + PLAIN
# Not every conversation begins with the same text: the default changes when a second question follows.
CHANGING_SYSTEM = "<system>{{ (messages | length + 1) // 2 }} turns</s>\n" + PLAIN
LAST_SYSTEM = (  # before the last question only, as Mistral's
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "[{% if messages[0]['role'] == 'system' and messages[loop.index0 + 1:] | selectattr('role', 'equalto', 'user')"
    " | list | length == 0 %}{{ messages[0]['content'] }} {% endif %}{{ m['content'] }}]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
NO_THOUGHTS = (  # an answer that others follow loses its thoughts
    "{% for m in messages %}<{{ m['role'] }}>{% if not loop.last and m['role'] == 'assistant' %}"
    "{{ m['content'].split('</think>')[-1] | trim }}{% else %}{{ m['content'] }}{% endif %}</s>\n{% endfor %}" + PROMPT
)
EMPTY_THOUGHT = (  # only the last answer begins with one, as Qwen3's
    "{% for m in messages %}<{{ m['role'] }}>{% if loop.last and m['role'] == 'assistant' %}<think>\n</think>\n"
    "{% endif %}{{ m['content'] }}</s>\n{% endfor %}" + PROMPT
)
OPEN_THOUGHT = PLAIN.replace("<assistant>{% endif", "<assistant><think>\n{% endif")  # the prompt, never the answer
CLOSED_AT_END = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}" + (
    "{% if add_generation_prompt %}<assistant>{% else %}</s>{% endif %}"
)
# The turn is closed by a token of its own, and the text by EOS, as Phi-3's.
CLOSED_TWICE = CLOSED_AT_END.replace("{{ m['content'] }}", "{{ m['content'] }}<pad>")
NO_SYSTEM = "{% for m in messages if m['role'] != 'system' %}" + TURN + "{% endfor %}" + PROMPT
LAST_TWO = PLAIN.replace("in messages", "in messages[-2:]")
NO_FIRST_ANSWER = PLAIN.replace("in messages", "in messages if m['role'] != 'assistant' or m == messages[-1]")
UPPER = PLAIN.replace("m['content']", "m['content'] | upper")
UPPER_ANSWERS = PLAIN.replace("m['content']", "(m['content'] | upper if m['role'] == 'assistant' else m['content'])")
RAISES = "{{ raise_exception('only one turn') if messages | length > 2 }}" + PLAIN
FAILS = "{{ messages[5].content }}" + PLAIN
NO_PROMPT = LOOP  # so the model writes the header itself
BLOCK = "{% generation %}{{ m['content'] }}</s>{% endgeneration %}\n"
BLOCKS = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}"
    + BLOCK
    + "{% else %}{{ m['content'] }}</s>\n{% endif %}{% endfor %}"
    + PROMPT
)
OPEN_BLOCKS = BLOCKS.replace("</s>{% endgeneration %}", "{% endgeneration %}</s>")
EOS_BLOCKS = BLOCKS.replace("</s>{% endgeneration %}", "{% endgeneration %}{% generation %}</s>{% endgeneration %}")
ONE_BLOCK = BLOCKS.replace("== 'assistant'", "== 'assistant' and loop.last")
EMPTY_BLOCKS = BLOCKS.replace(BLOCK, "{% generation %}{% endgeneration %}{{ m['content'] }}</s>\n")
UNCLOSED_BLOCKS = BLOCKS.replace("</s>{% endgeneration %}", "{% endgeneration %}")

ASKED = (Message("system", "Be brief."), Message("user", "Rain?"))
CALL = '[{"id": "c1", "type": "function", "function": {"name": "rain", "arguments": {"city": "Rome", "days": 2}}}]'
CALLED = (*ASKED, Message("assistant", "", CALL), Message("tool", "none", call_id="c1"), Message("assistant", "No."))
RAIN = '[{"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}]'
TOOL_TURN = (
    "<{{ m['role'] }}>{{ m['content'] }}{% for call in m['tool_calls'] or [] %}<pad>{{ call | tojson }}{% endfor %}"
)
WITH_TOOLS = (
    "{% if tools %}<tools>{{ tools | tojson }}</s>{% endif %}{% for m in messages %}" + TOOL_TURN + "</s>\n{% endfor %}"
) + PROMPT
NO_CALLS = WITH_TOOLS.replace("m['tool_calls'] or []", "[]")
CALLS_WITHOUT_ARGUMENTS = WITH_TOOLS.replace("{{ call | tojson }}", "{{ call['function']['name'] }}")
NO_TOOLS = WITH_TOOLS.replace("if tools", "if false")
# Of a tool the name and its parameters, as gpt-oss' template writes them.
NAMED_PARAMETERS = WITH_TOOLS.replace(
    "tools | tojson", "tools[0].function.name + (tools[0].function.parameters.properties | join(','))"
)
RAIN_IN = RAIN.replace('"object"', '"object", "properties": {"city": {"type": "string"}}')
NO_TOOL_TURNS = WITH_TOOLS.replace("in messages %}", "in messages if m['role'] != 'tool' %}")
# The turn with the call is closed by no EOS, but by a special token that the call has as well.
CALL_CLOSED_BY_PAD = WITH_TOOLS.replace("</s>\n{% endfor", "{{ '<pad>' if m['tool_calls'] else '</s>' }}\n{% endfor")
TOOL_BLOCKS = WITH_TOOLS.replace(
    TOOL_TURN + "</s>\n",
    "{% if m['role'] == 'assistant' %}<assistant>{% generation %}"
    + TOOL_TURN.replace("<{{ m['role'] }}>", "")
    + "</s>{% endgeneration %}\n{% else %}"
    + TOOL_TURN
    + "</s>\n{% endif %}",
)

FOLLOWED = "the tokenizer's chat template rewrites or does not close an answer when turns follow " + (
    "(train.learn: last learns the last answer alone)"
)
REWRITTEN = "the tokenizer's chat template rewrites the answer"
NOT_PROMPTED = "the tokenizer's chat template does not begin an answer with its own prompt for one"
LEFT_OUT = "the tokenizer's chat template leaves out or rewrites a message of the role "
REFUSED = "the tokenizer's chat template refuses it: "


def tokenizer_with(template: str) -> PreTrainedTokenizerBase:
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.chat_template = template
    return tokenizer


def learned(template: str, messages: tuple[Message, ...], learn: LearnedAnswers = "all") -> list[str] | str:
    """The texts that are learned, or the reason why none is."""
    rendered = render_by_tokenizer(messages, tokenizer_with(template), learn, "")
    return rendered if isinstance(rendered, str) else [rendered.text[start:end] for start, end in rendered.answers]


@pytest.mark.parametrize(
    ("template", "messages", "answers"),
    [
        (PLAIN, SYSTEM, ["yo</s>", " ya\n</s>"]),
        (TRIMMED, SYSTEM, ["yo</s>", "ya</s>"]),
        (DEFAULT_SYSTEM, TWO, ["yo</s>", " ya\n</s>"]),
        (CHANGING_SYSTEM, ONE, ["yo</s>"]),
        (CHANGING_SYSTEM, TWO, FOLLOWED),
        (LAST_SYSTEM, TWO, [" yo</s>", "  ya\n</s>"]),
        (LAST_SYSTEM, SYSTEM, FOLLOWED),
        (NO_THOUGHTS, TWO, ["yo</s>", " ya\n</s>"]),
        (NO_THOUGHTS, THOUGHT, FOLLOWED),
        (EMPTY_THOUGHT, ONE, ["<think>\n</think>\nyo</s>"]),
        (EMPTY_THOUGHT, TWO, FOLLOWED),
        (OPEN_THOUGHT, ONE, NOT_PROMPTED),
        (CLOSED_AT_END, ONE, ["yo\n</s>"]),
        (CLOSED_AT_END, TWO, FOLLOWED),
        (CLOSED_TWICE, TWO, ["yo<pad>", " ya\n<pad>\n</s>"]),
        (NO_SYSTEM, TWO, ["yo</s>", " ya\n</s>"]),
        (NO_SYSTEM, SYSTEM, LEFT_OUT + "system"),
        (LAST_TWO, TWO, LEFT_OUT + "user"),
        (NO_FIRST_ANSWER, TWO, LEFT_OUT + "assistant"),
        (UPPER, ONE, LEFT_OUT + "user"),
        (UPPER_ANSWERS, ONE, REWRITTEN),
        (RAISES, ONE, ["yo</s>"]),
        (RAISES, TWO, REFUSED + "only one turn"),
        (FAILS, ONE, REFUSED + "list object has no element 5"),
        (NO_PROMPT, ONE, ["<assistant>yo</s>"]),
        (BLOCKS, SYSTEM, ["yo</s>", " ya\n</s>"]),
        (OPEN_BLOCKS, SYSTEM, ["yo</s>", " ya\n</s>"]),
        (EOS_BLOCKS, SYSTEM, ["yo</s>", " ya\n</s>"]),
        (
            ONE_BLOCK,
            TWO,
            "the tokenizer's chat template marks 1 answers by generation blocks, and the row has 2",
        ),
        (EMPTY_BLOCKS, ONE, REWRITTEN),
    ],
)
def test_every_answer_is_learned_that_the_template_is_shown_to_hold_and_no_other_row_is(
    template: str, messages: tuple[Message, ...], answers: list[str] | str
) -> None:
    assert learned(template, messages) == answers


@pytest.mark.parametrize(
    ("template", "messages", "answer"),
    [
        (PLAIN, SYSTEM, " ya\n</s>"),
        (BLOCKS, SYSTEM, " ya\n</s>"),
        (LAST_SYSTEM, SYSTEM, "  ya\n</s>"),
        (EMPTY_THOUGHT, TWO, "<think>\n</think>\n ya\n</s>"),
        (NO_THOUGHTS, THOUGHT, " ya\n</s>"),
        (CLOSED_AT_END, TWO, " ya\n\n</s>"),
    ],
)
def test_the_last_answer_alone_needs_no_other_to_be_shown(
    template: str, messages: tuple[Message, ...], answer: str
) -> None:
    assert learned(template, messages, "last") == [answer]


@pytest.mark.parametrize("template", [PLAIN, BLOCKS])
def test_it_is_the_same_day_in_every_rendering(template: str) -> None:
    tokenizer = tokenizer_with("<system>Today: {{ strftime_now('%d %b %Y') }}</s>\n" + template)
    rendered = render_by_tokenizer(ONE, tokenizer, "all", "")
    assert isinstance(rendered, RenderedChat)
    assert rendered.text.startswith("<system>Today: 26 Jul 2024</s>")


@pytest.mark.parametrize("template", [UNCLOSED_BLOCKS, PLAIN.replace("</s>", "")])
def test_a_template_that_closes_no_answer_is_an_error(template: str) -> None:
    with pytest.raises(ModelError, match="closes an answer with no special token"):
        learned(template, ONE)


@pytest.mark.parametrize(
    ("template", "learned_texts"),
    [
        (WITH_TOOLS, [f"<pad>{CALL[1:-1]}</s>", "No.</s>"]),
        (CALL_CLOSED_BY_PAD, [f"<pad>{CALL[1:-1]}<pad>", "No.</s>"]),
        (TOOL_BLOCKS, [f"<pad>{CALL[1:-1]}</s>", "No.</s>"]),
        (PLAIN, "the tokenizer's chat template leaves out or rewrites tools"),
        (NO_TOOLS, "the tokenizer's chat template leaves out or rewrites tools"),
        (NO_CALLS, "the tokenizer's chat template leaves out or rewrites tool calls"),
        (CALLS_WITHOUT_ARGUMENTS, "the tokenizer's chat template leaves out or rewrites tool calls"),
        (NO_TOOL_TURNS, LEFT_OUT + "tool"),
    ],
)
def test_calls_are_learned_as_the_template_writes_them_where_it_writes_tools_calls_and_what_tools_say(
    template: str, learned_texts: list[str] | str
) -> None:
    rendered = render_by_tokenizer(CALLED, tokenizer_with(template), "all", RAIN)
    found = rendered if isinstance(rendered, str) else [rendered.text[start:end] for start, end in rendered.answers]
    assert found == learned_texts


@pytest.mark.parametrize(
    ("template", "is_rendered"),
    [(NAMED_PARAMETERS, True), (NAMED_PARAMETERS.replace(".properties", ".none"), False)],
    ids=["with parameters", "without parameters"],
)
def test_of_a_tool_the_name_and_the_parameters_have_to_be_written(template: str, is_rendered: bool) -> None:
    rendered = render_by_tokenizer(CALLED, tokenizer_with(template), "all", RAIN_IN)
    assert isinstance(rendered, RenderedChat) == is_rendered


@pytest.mark.parametrize(("messages", "tools"), [(CALLED, ""), (ONE, RAIN)])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_writes_tools(family: str, messages: tuple[Message, ...], tools: str) -> None:
    refused = render_chat(family, messages, byte_tokenizer(bos=False), "", "all", tools)
    assert refused == f"the chat format {family} has no tools; a tokenizer's own template may have (model.chat_format)"


@pytest.mark.parametrize("learn", ["all", "last"])
@pytest.mark.parametrize("messages", [ONE, TWO, SYSTEM], ids=["one turn", "two turns", "system"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_of_a_family_is_shown_to_hold_what_the_family_writes(
    family: str, messages: tuple[Message, ...], learn: LearnedAnswers
) -> None:
    expected = render_chat(family, messages, byte_tokenizer(bos=False), "", learn)
    assert isinstance(expected, RenderedChat)
    assert len(expected.answers) == (1 if learn == "last" else len(messages) // 2)
    assert render_by_tokenizer(messages, tokenizer_with(chat_template(family, with_bos=False)), learn, "") == expected
