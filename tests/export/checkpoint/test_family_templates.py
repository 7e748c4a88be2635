"""The chat templates of Llama 3, Qwen3 and SmolLM2: literals, what is stripped, and what is rejected."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.chat_templates import CHATS, STRIPPED
from testing.hypothesis_profiles import examples

from stepscore.errors import InvalidRecord, UnsupportedArchitecture
from stepscore.prompt.template import Strip, Template, TextRule
from stepscore_export.checkpoint import template_sandbox as sandbox
from stepscore_export.checkpoint.chat_template import literals
from stepscore_export.checkpoint.opaque_text import LookedAt, Unknown, Written
from stepscore_export.checkpoint.tokenizer import ChatTemplate

NAMES = pytest.mark.parametrize("name", CHATS)
LOOP = "{% for m in messages %}<{{ m.role }}>{{ BODY }}</>{% endfor %}"
TEXTS = st.text() | st.text(" \n\ta\x1c\x85\u2003<think/>_", max_size=12)


def of(source: str) -> Template:
    return literals(ChatTemplate(source, {}))


@NAMES
def test_template_of_a_family_becomes_its_literals_and_rules(name: str) -> None:
    chat = CHATS[name]
    assert literals(ChatTemplate(chat.source, chat.variables)) == chat.template


@NAMES
@examples(30)
@given(texts=st.lists(st.tuples(TEXTS, TEXTS.filter(lambda text: bool(text.strip()))), min_size=5))
def test_the_template_record_renders_any_text_as_the_template_does(
    name: str, texts: list[tuple[str, str]]
) -> None:
    chat = CHATS[name]
    conversations = [
        [{"role": "user", "content": problem}, {"role": "assistant", "content": answer}]
        for problem, answer in texts
    ]
    rendered = sandbox.render(chat.source, dict(chat.variables), conversations)
    for (problem, answer), text in zip(texts, rendered, strict=True):
        try:
            chat.template.check(problem, [answer])
        except InvalidRecord:
            continue
        assert chat.template.render(problem, [answer]) == text


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("m.content", TextRule()),
        ("m.content | trim", STRIPPED),
        ("m.content.strip()", STRIPPED),
        ("m.content | string | trim | trim", STRIPPED),
        ("m.content.strip('\\n')", TextRule(Strip.LINE_FEEDS, Strip.LINE_FEEDS)),
        ("m.content.lstrip('\\n').rstrip()", TextRule(Strip.LINE_FEEDS, Strip.WHITE_SPACE)),
        ("(m.content | trim).lstrip('\\n')", STRIPPED),
        ("m.content.lstrip('\\n').strip()", STRIPPED),
        ("('' + m.content) | trim", STRIPPED),
        (
            "m.content.split('</think>')[-1].rstrip()",
            TextRule(right=Strip.WHITE_SPACE, rejected=("</think>",)),
        ),
        ("'x' if '<a>' in m.content and '<b>' in m.content else m.content", TextRule(rejected=("<a>",))),
    ],
)
def test_what_is_stripped_and_searched_for_is_recorded(body: str, rule: TextRule) -> None:
    unknown = Unknown(0), Unknown(1)
    parts = sandbox.trace(LOOP.replace("BODY", body), {}, unknown)
    written = [part for part in parts if isinstance(part, Written)]
    assert [TextRule(part.left, part.right, tuple(part.text.absent)) for part in written] == [rule, rule]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("('a' + m.content) | trim", "strips more than the text"),
        ("m.content | trim('x')", "strips 'x' off"),
        ("'x' if 'step by step' in m.content else m.content", "looks with `in` into"),
        ("'x' if '<think>' in ('<' + m.content) else m.content", "more than the text"),
    ],
)
def test_what_depends_on_a_text_in_another_way_is_rejected(body: str, message: str) -> None:
    with pytest.raises(LookedAt, match=message):
        sandbox.trace(LOOP.replace("BODY", body), {})


def test_template_that_writes_something_for_a_blank_problem_is_rejected() -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"the problem ' \\n' .* otherwise than other texts"):
        of(LOOP.replace("BODY", "'none' if m.content and not m.content | trim else m.content"))


def test_todays_date_is_a_fixed_one_and_said(caplog: pytest.LogCaptureFixture) -> None:
    source = "{{ strftime_now('%Y-%m-%d %H:%M') }}" + LOOP.replace("BODY", "m.content")
    with caplog.at_level(logging.WARNING, logger="stepscore"):
        assert of(source).prefix == "2024-07-26 00:00<user>"
    assert "has 26 Jul 2024 in its place" in caplog.text
    caplog.clear()
    of(CHATS["llama3.1"].source)
    assert not caplog.records


def test_text_that_the_template_would_split_is_rejected_by_its_place() -> None:
    template = CHATS["qwen3"].template
    template.check("Is <think> text?", ["<think>", "x"])
    with pytest.raises(InvalidRecord, match=r"steps\[1\] contains '</think>'"):
        template.check("p", ["a", "b</think>c"])
    with pytest.raises(InvalidRecord, match="problem contains '<tool_response>'"):
        template.check("<tool_response>", ["a"])
