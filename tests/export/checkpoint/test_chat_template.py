"""A chat template becomes three literals that say exactly what transformers would render, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.checkpoints import CHAT_TEMPLATE, write_json, write_tokenizer
from testing.hypothesis_profiles import examples
from testing.shared_data import SHARED_DATA

from stepscore.errors import CheckpointUnsafe, StepscoreError, UnsupportedArchitecture
from stepscore.prompt.template import Template
from stepscore_export.checkpoint import template_sandbox as sandbox
from stepscore_export.checkpoint.chat_template import literals
from stepscore_export.checkpoint.tokenizer import ChatTemplate, read_chat_template
from stepscore_export.checkpoint.untrusted_folder import CheckpointFolder

QWEN_MATH = Template(
    prefix="<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}."
    "<|im_end|>\n<|im_start|>user\n",
    between="<|im_end|>\n<|im_start|>assistant\n",
    suffix="<|im_end|>\n",
)
LOOP = "{% for m in messages %}<{{ m.role }}>{{ BODY }}</>{% endfor %}"
PLAIN = LOOP.replace("BODY", "m.content")


def template(text: str, **variables: str) -> ChatTemplate:
    return ChatTemplate(text, variables)


def conversation(problem: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem}, {"role": "assistant", "content": answer}]


# What it becomes


def test_qwen_maths_template_brings_its_system_turn() -> None:
    assert literals(template(CHAT_TEMPLATE)) == QWEN_MATH


@examples(20)
@given(st.lists(st.tuples(st.text(), st.text()), min_size=5))
def test_literals_render_any_text_as_the_template_does(texts: list[tuple[str, str]]) -> None:
    rendered = sandbox.render(CHAT_TEMPLATE, {}, [conversation(problem, answer) for problem, answer in texts])
    assert rendered == [
        QWEN_MATH.prefix + problem + QWEN_MATH.between + answer + QWEN_MATH.suffix
        for problem, answer in texts
    ]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLAIN, Template("<user>", "</><assistant>", "</>")),
        (
            "{{ bos_token }}" + PLAIN + "{{ eos_token }}{{ pad_token }}",
            Template("^<user>", "</><assistant>", "</>$"),
        ),
        ("  {% if tools %}\ntools\n  {% endif %}\n" + PLAIN, Template("<user>", "</><assistant>", "</>")),
        (
            "{% for m in messages %}{% if m.x %}{% continue %}{% endif %}[{{ m.content }}]{% endfor %}",
            Template("[", "][", "]"),
        ),
        (
            "{% for m in messages %}{% generation %}[{{ m['content'] }}]{% endgeneration %}{% endfor %}",
            Template("[", "][", "]"),
        ),
        ("{{ {'π': '<b>'} | tojson }}" + PLAIN, Template('{"π": "<b>"}<user>', "</><assistant>", "</>")),
        (
            PLAIN + "{% if add_generation_prompt %}<assistant>{% endif %}",
            Template("<user>", "</><assistant>", "</>"),
        ),
    ],
    ids=[
        "plain",
        "special tokens",
        "white space control",
        "loop controls",
        "generation",
        "tojson",
        "no prompt",
    ],
)
def test_templates_are_rendered_as_transformers_does(text: str, expected: Template) -> None:
    variables = {"bos_token": "^", "eos_token": "$"}
    assert literals(template(text, **variables)) == expected
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    (theirs,), _ = utils.render_jinja_template([conversation("P", "A")], chat_template=text, **variables)
    assert theirs == expected.prefix + "P" + expected.between + "A" + expected.suffix


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LOOP.replace("BODY", "m.content | trim"), "trims the white space of the problem"),
        (
            LOOP.replace("BODY", "m.content.strip() if m.role == 'assistant' else m.content"),
            "trims the white space of the answer",
        ),
        (LOOP.replace("BODY", "m.content | e"), "escapes the problem"),
        (LOOP.replace("BODY", "m.content | tojson"), "escapes the problem"),
        (LOOP.replace("BODY", "m.content.split('</think>')[-1]"), "changes part of the problem '<think>"),
        (LOOP.replace("BODY", "m.content | truncate(1000)"), "changes part of the problem 'long"),
        (LOOP.replace("BODY", "m.content | upper"), "drops or changes the problem"),
        (LOOP.replace("BODY", "m.content + m.content"), "repeats the problem"),
        ("{{ messages[0].content }}", "drops or changes the answer"),
        ("{{ messages[1].content }}{{ messages[0].content }}", "the answer before the problem"),
        (
            PLAIN + "{% if '\n' in messages[1].content %}!{% endif %}",
            "changes its own text around the answer",
        ),
    ],
)
def test_template_that_alters_texts_is_rejected(text: str, message: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=message):
        literals(template(text))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{% for %}", UnsupportedArchitecture, "TemplateSyntaxError"),
        ("{{ undefined_function() }}", UnsupportedArchitecture, "'undefined_function' is undefined"),
        ("{{ raise_exception('only one turn') }}", UnsupportedArchitecture, "only one turn"),
        ("{{ strftime_now('%Y') }}" + PLAIN, UnsupportedArchitecture, "today's date"),
        ("{{ ''.__class__.__mro__ }}", CheckpointUnsafe, "__class__"),
        ("{{ messages.append({}) }}", CheckpointUnsafe, "append"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", CheckpointUnsafe, "__init__"),
        ("{% include '/etc/passwd' %}", UnsupportedArchitecture, "no loader"),
    ],
)
def test_failing_template_says_why(text: str, error: type[StepscoreError], message: str) -> None:
    with pytest.raises(error, match=message):
        literals(template(text))


LINES = "{% for i in range(99999) %}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% set x = 'a' * 10**10 %}", "MemoryError"),
        (LINES + "{{ 'x' * 99 }}{% endfor %}", "more than 1048576 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
    ids=["range", "memory", "output", "recursion"],
)
def test_template_with_too_much_memory_is_stopped(text: str, message: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=message):
        literals(template(text))


@pytest.mark.parametrize("text", [LINES * 3 + "{% endfor %}" * 3, "{% set x = 10**(10**10) %}"])
def test_endless_template_is_stopped(text: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match="did not finish within 1 seconds"):
        literals(template(text), time_limit=1)


# Where it is found


def write_config(folder: Path, **config: Any) -> CheckpointFolder:
    write_json(folder / "tokenizer_config.json", config)
    return CheckpointFolder.open(folder)


@pytest.mark.parametrize("layout", [4, 5])
def test_both_layouts_give_the_same_template(tmp_path: Path, layout: Any) -> None:
    write_tokenizer(tmp_path, layout=layout)
    found = read_chat_template(CheckpointFolder.open(tmp_path))
    assert found == ChatTemplate(CHAT_TEMPLATE, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})


def test_template_file_wins_over_tokenizer_config(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("file")
    assert read_chat_template(write_config(tmp_path, chat_template="configuration")).text == "file"


def test_default_of_named_templates_is_used(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert read_chat_template(write_config(tmp_path, chat_template=named)).text == "plain"


def test_named_templates_without_a_default_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"\['rag', 'tool_use'\] is named 'default'"):
        read_chat_template(
            write_config(
                tmp_path, chat_template=[{"name": name, "template": ""} for name in ("tool_use", "rag")]
            )
        )


def test_a_missing_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match="no chat template"):
        read_chat_template(write_config(tmp_path, chat_template=None))


@pytest.mark.torch
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"bos_token": "<|im_start|>", "eos_token": None},
        {"eos_token": {"content": "<|im_end|>", "lstrip": False, "__type": "AddedToken"}},
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
        {"extra_special_tokens": {"image_token": "<|im_start|>"}},
    ],
)
def test_template_variables_are_those_of_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tmp_path)
    folder = write_config(tmp_path, tokenizer_class="Qwen2Tokenizer", chat_template="", **config)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).special_tokens_map
    ours = read_chat_template(folder).variables
    if transformers.__version__ >= "5":  # which no longer hands this one to templates
        ours = {name: value for name, value in ours.items() if name != "additional_special_tokens"}
    assert ours == theirs


@pytest.mark.torch
@pytest.mark.shared_data
@pytest.mark.skipif(SHARED_DATA is None, reason="no shared data")
def test_literals_render_real_solutions_as_transformers_does() -> None:
    transformers = pytest.importorskip("transformers")
    assert SHARED_DATA is not None
    folder = SHARED_DATA / "qwen2.5-math-tokenizer"
    found = literals(read_chat_template(CheckpointFolder.open(folder)))
    assert found == QWEN_MATH
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with (SHARED_DATA / "math_best_of_8.jsonl").open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    for record in records:
        for count in range(1, len(record["steps"]) + 1):
            answer = "\n\n".join(record["steps"][:count])
            theirs = tokenizer.apply_chat_template(conversation(record["problem"], answer), tokenize=False)
            assert theirs == found.prefix + record["problem"] + found.between + answer + found.suffix
