"""API keys come from a file and the environment; a server that is meant to be guarded never starts open."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepscore.errors import InputUnreadable, StepscoreError
from stepscore.server.keys import KEY_VARIABLE, is_authorized, load_keys


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def test_without_a_source_there_is_no_key() -> None:
    assert load_keys(None) == frozenset()


def test_keys_of_both_sources_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.txt"
    path.write_bytes(b"\n one \r\ntwo\n")
    monkeypatch.setenv(KEY_VARIABLE, "three")
    keys = load_keys(path)
    assert len(keys) == 3
    assert all(is_authorized(f"Bearer {key}", keys) for key in ("one", "two", "three"))
    assert b"three" not in keys


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_a_source_without_a_key_is_an_error(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(text)
    with pytest.raises(StepscoreError, match=r"keys\.txt holds no key"):
        load_keys(path)
    monkeypatch.setenv(KEY_VARIABLE, text)
    with pytest.raises(StepscoreError, match="STEPSCORE_API_KEY holds no key"):
        load_keys(None)


@pytest.mark.parametrize("key", ["two words", "caf\xe9", "tab\tbed"])
def test_a_key_that_no_header_can_hold_is_named_by_its_line_only(key: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(f"good\n{key}\n", encoding="utf-8")
    with pytest.raises(StepscoreError, match="line 2") as raised:
        load_keys(path)
    assert key not in raised.value.message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match="No such file"):
        load_keys(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(InputUnreadable, match="not UTF-8"):
        load_keys(tmp_path / "binary")
