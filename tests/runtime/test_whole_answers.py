"""`completions`: the steps of one solution, or N whole answers, which must not be scored as N steps."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.errors import InvalidRecord
from stepscore.records import record_from

# As search-and-learn writes them.
BEST_OF_N: dict[str, Any] = {
    "problem": "3 bags of 4 pens?",
    "answer": "12",
    "completions": ["3 * 4 = 12.\n\nSo \\boxed{12}.", "3 + 4 = 7.\n\nSo \\boxed{7}."],
    "scores": [[0.9, 0.8], [0.1, 0.2]],
    "pred": "\\boxed{12}",
}
WORDS = st.text(alphabet="ab 1=.\n", max_size=12).filter(lambda text: text.strip().count("\n") < 2)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"scores": None},
        {"completions": ["one\n \ntwo", "three"], "scores": None},
        {"completions": ["one\r\n\r\ntwo"], "scores": None},
        {"completions": ["So \\boxed{1}.", "So \\boxed{2}."], "scores": None},
        {"completions": ["So 1.", "So 2."]},
    ],
)
def test_whole_answers_are_not_scored_as_steps(changed: dict[str, Any]) -> None:
    fields = BEST_OF_N | changed
    with pytest.raises(InvalidRecord) as refused:
        record_from(fields)
    assert f"{len(fields['completions'])} whole answers" in refused.value.message
    assert len(refused.value.message) < 300


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_completions_without_blank_lines_are_steps(steps: list[str]) -> None:
    assert record_from({"prompt": "p", "completions": steps}).steps == tuple(steps)


def test_completions_with_one_label_each_are_steps() -> None:
    """TRL's stepwise supervision."""
    steps = ["So \\boxed{1}.", "Or\n\n\\boxed{2}."]
    assert record_from({"prompt": "p", "completions": steps, "labels": [True, False]}).steps == tuple(steps)


def test_steps_may_hold_blank_lines() -> None:
    assert record_from({"problem": "p", "steps": ["a\n\nb", "c"]}).steps == ("a\n\nb", "c")


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_the_named_command_writes_one_line_per_answer() -> None:
    with pytest.raises(InvalidRecord) as refused:
        record_from(BEST_OF_N)
    (program,) = re.findall(r"jq -c '(.*)'", refused.value.message)
    done = subprocess.run(
        ["jq", "-c", program], input=json.dumps(BEST_OF_N), capture_output=True, text=True, check=True
    )
    records = [record_from(json.loads(line)) for line in done.stdout.splitlines()]
    assert [record.steps for record in records] == [
        ("3 * 4 = 12.", "So \\boxed{12}."),
        ("3 + 4 = 7.", "So \\boxed{7}."),
    ]
