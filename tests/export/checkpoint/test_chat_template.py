"""A chat template becomes three literals that say exactly what transformers would render, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
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
from stepscore_export.checkpoint.opaque_text import LookedAt, Unknown, Written
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
        (LOOP.replace("BODY", "m.content + m.content"), "repeats the problem"),
        ("{{ messages[0].content }}", "drops the answer"),
        ("{{ messages[1].content }}{{ messages[0].content }}", "the answer before the problem"),
        (LOOP.replace("BODY", "m.content or 'nothing'"), "renders the problem '' with the answer"),
        (LOOP.replace("BODY", "m.content").replace("<{{", "{{ '\\ud800' }}<{{"), "writes a lone surrogate"),
    ],
)
def test_template_that_does_not_write_each_text_once_is_rejected(text: str, message: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=message):
        literals(template(text))


EVERY_LOOK = {
    "c | trim('x')": "strips 'x' off",
    "c.rstrip(' ')": "strips ' ' off",
    "c | e": "applies the filter `e`",
    "c | tojson": "applies the filter `tojson`",
    "c | truncate(1000)": "applies the filter `truncate`",
    "c | upper": "applies the filter `upper`",
    "c | length": "applies the filter `length`",
    "c | default('') | replace('a', 'b')": "applies the filter `replace`",
    "[c] | join": "formats",
    "messages | map(attribute='content') | join": "formats",
    "messages | tojson": "not JSON serializable",
    "c.split('<')[-1]": r"uses `\.split`",
    "c.split()[-1]": r"uses `\.split`",
    "c.startswith('<a b>')": r"uses `\.startswith`",
    "c.endswith(c)": r"uses `\.endswith`",
    "c.removeprefix('<think>')": r"uses `\.removeprefix`",
    "c[:100]": "takes a part of",
    "c[0]": "takes a part of",
    "c == 'x'": "compares",
    "'x' < c": "compares",
    "c in 'abc'": "does more than write",
    "'step by step' not in c": "looks with `in` into",
    "c is eq 'x'": "applies the test `eq`",
    "c is lower": "applies the test `lower`",
    "{'a': 1}[c]": "uses as a key",
    "messages[c]": "uses as a key",
    "7[c]": "uses as a key",
    "'%s' % c": "formats",
    "'{}'.format(c)": "formats",
    "c * 2": "calculates with",
    "c % 2": "formats",
    "messages[0].content == messages[1].content": "compares",
}


@pytest.mark.parametrize(("expression", "message"), EVERY_LOOK.items())
@pytest.mark.parametrize("place", ["output", "condition", "block", "macro", "joined"])
def test_template_that_looks_at_a_text_is_rejected_by_the_construct(
    expression: str, message: str, place: str
) -> None:
    before, text = "", expression
    if place == "block":
        before = "{% set c %}{{ c }}{% endset %}"
    elif place == "macro":
        before = "{% macro f(x) %}{{ x }}{% endmacro %}{% set c = f(c) %}"
    elif place == "joined":
        before = "{% set c = 'a' ~ c ~ 1 %}"
    elif place == "condition":
        text = f"'x' if ({expression}) else 'y'"
    source = "{% for message in messages %}\n{% set c = message.content %}" + before
    with pytest.raises(LookedAt, match=message) as caught:
        sandbox.trace(source + "{{ c }}{{ " + text + " }}{% endfor %}", {})
    assert str(caught.value).startswith("in line 2 it ")


@pytest.mark.parametrize(
    "condition",
    ["m.content", "m.content is string", "m.content is not none", "m.role == 'user'", "not m.tool_calls"],
)
def test_template_may_ask_what_is_the_same_for_all_texts(condition: str) -> None:
    text = LOOP.replace("BODY", "m.content").replace("<{{", "{% if " + condition + " %}{% endif %}<{{")
    assert literals(template(text)) == Template("<user>", "</><assistant>", "</>")


@examples(60)
@given(st.data())
def test_literals_of_any_template_hold_for_any_text_or_it_is_rejected(data: st.DataObject) -> None:
    pieces = data.draw(st.lists(st.sampled_from(PIECES)))
    if data.draw(st.booleans()):
        pieces.append("{{ " + data.draw(st.sampled_from(sorted(EVERY_LOOK))) + " }}")
    source = (
        "{% for message in messages %}{% set c = message.content %}" + "".join(pieces) + "{{ c }}{% endfor %}"
    )
    texts = data.draw(st.lists(st.tuples(TEXTS, TEXTS), min_size=5))
    unknown = Unknown(0), Unknown(1)
    try:
        parts = sandbox.trace(source, {}, unknown)
        rendered = sandbox.render(source, {}, [conversation(*each) for each in texts])
    except jinja2.TemplateError:
        return
    except (TypeError, ValueError, ArithmeticError, LookupError):
        return
    for each, text in zip(texts, rendered, strict=True):
        if not any(tag in each[at] for at in (0, 1) for tag in unknown[at].absent):
            assert text == "".join(part if isinstance(part, str) else written(part, each) for part in parts)


def written(part: Written, texts: tuple[str, str]) -> str:
    return part.right.right(part.left.left(texts[part.text.number]))


PIECES = (
    *("{{ c }}", "x", "{{ message.role }}", "{{ loop.index ~ c ~ loop.last }}", "{% set c = c + 'a' %}"),
    *(
        "{% if c %}a{% endif %}",
        "{{ c or 'b' }}",
        "{{ c if message.role == 'user' }}",
        "{% set d %}{{ c }}{% endset %}",
    ),
    *("{{ d }}", "{{ d | string }}", "{{ c | default('z') }}", "{{ [c] | first }}", "{{ {'k': c}.k }}"),
    *(
        "{{ c | trim }}",
        "{{ c.lstrip('\n') }}",
        "{% set c = c | trim %}",
        "{{ c.rstrip() }}{{ c.strip('\n') }}",
    ),
    *("{% if '</think>' in c %}t{% endif %}", "{{ c.split('<think>')[-1] }}", "{{ c.startswith('<a>') }}"),
    *("{{ messages | length }}", "{{ messages[0].content }}", "{{ loop.cycle(c, 'o') }}", "{{ tools }}"),
    *(
        "{% if c is string %}s{% endif %}",
        "{% if d is defined %}d{% endif %}",
        "{{ messages[::-1][0].content }}",
    ),
)
TEXTS = st.text(min_size=1) | st.sampled_from(
    ["x", "step by step", "a", "</think>", "<tool_response>", "100", " x\n", "\n \na\t", "a<think>b", "<a>"]
)


def test_template_that_prints_an_object_of_python_is_rejected() -> None:
    for text in (
        "{{ raise_exception }}",
        "{{ strftime_now }}",
        "{{ loop }}",
        "{{ cycler }}",
        "{{ [''.join] }}",
        "{{ m }}",
    ):
        with pytest.raises(UnsupportedArchitecture, match="writes an object of Python"):
            literals(template(PLAIN.replace("<{{", text + "<{{")))
    with pytest.raises(UnsupportedArchitecture, match=r"differently each time|writes an object of Python"):
        literals(template("{{ raise_exception | string }}" + PLAIN))


@pytest.mark.parametrize("text", ["{{ [1, 2] | random }}", "{{ lipsum() }}"])
def test_template_that_draws_at_random_is_rejected(text: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match="draws at random"):
        literals(template(text + PLAIN))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{% for %}", UnsupportedArchitecture, "TemplateSyntaxError"),
        ("{{ undefined_function() }}", UnsupportedArchitecture, "'undefined_function' is undefined"),
        ("{{ raise_exception('only one turn') }}", UnsupportedArchitecture, "only one turn"),
        ("{{ strftime_now(1) }}" + PLAIN, UnsupportedArchitecture, "TypeError"),
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


@pytest.mark.slow
@pytest.mark.parametrize("text", [LINES * 3 + "{% endfor %}" * 3, "{% set x = 10**(10**10) %}"])
def test_endless_template_is_stopped(text: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match="did not finish within 1 seconds of CPU time"):
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
        {"tokenizer_class": "GPT2Tokenizer"},
        {"tokenizer_class": "GPT2TokenizerFast", "bos_token": "<|im_start|>", "unk_token": None},
        {"tokenizer_class": "LlamaTokenizerFast", "eos_token": "<|im_end|>"},
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>"},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
    ],
)
def test_template_variables_are_those_of_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tmp_path)
    folder = write_config(tmp_path, **({"tokenizer_class": "Qwen2Tokenizer", "chat_template": "x"} | config))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    if type(tokenizer).__name__ == "TokenizersBackend" and "Llama" in str(config):
        pytest.skip("transformers 5 takes no byte-level tokenizer.json for a LlamaTokenizer")
    theirs = tokenizer.special_tokens_map
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
