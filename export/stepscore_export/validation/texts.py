"""The solutions that a pair's fidelity is measured on: ours, or a file of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from stepscore.enums import Convention
from stepscore.errors import ExportError, InputError, TooLong
from stepscore.jobs.jsonl import ParsedLine, parse_line, read_lines
from stepscore.prompt.encoder import EncodedPrompt, PromptEncoder
from stepscore.records import Record

BUNDLED = "bundled"


@dataclass(frozen=True, slots=True)
class Texts:
    """Solutions, line by line of a JSONL file; `path` is None for those that come with stepscore."""

    path: Path | None
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        """What a manifest calls them."""
        return BUNDLED if self.path is None else self.path.name


def bundled_texts() -> Texts:
    """Return twelve problems with solutions of 110 to 1,100 characters, a third of them with a wrong step."""
    data = (files("stepscore_export") / "data" / "fidelity.jsonl").read_bytes()
    return Texts(None, tuple(_record(parsed, BUNDLED) for parsed in _lines(BytesIO(data))))


def read_texts(path: Path) -> Texts:
    """Read a file with the lines of `stepscore score`; raise ExportError naming the line that is not one."""
    try:
        with path.open("rb") as source:
            records = tuple(_record(parsed, path.name) for parsed in _lines(source))
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror or error}") from None
    if not records:
        raise ExportError(
            f"{path.name} is empty", hint='a line is {"problem": "...", "steps": ["...", "..."]}'
        )
    return Texts(path, records)


def encode_texts(texts: Texts, encoder: PromptEncoder, max_tokens: int | None = None) -> list[EncodedPrompt]:
    """Encode by the card's convention; what is longer than the encoder allows is left out.

    With `max_tokens` it stops at the solution that reaches so many tokens in all.
    A user's file with another fault in a record, or with nothing left, is an ExportError. Of the bundled
    texts whatever this model cannot take is left out, be it all of them.
    """
    encoded: list[EncodedPrompt] = []
    total = 0
    for line, record in enumerate(texts.records, start=1):
        try:
            encoded.append(encoder.encode(record.problem, record.steps, Convention.CARD))
        except TooLong:
            continue
        except InputError as error:
            if texts.path is not None:
                raise _fault(texts.name, line, error) from None
            continue
        total += len(encoded[-1].token_ids)
        if max_tokens is not None and total >= max_tokens:
            break
    if texts.path is not None and not encoded:
        raise ExportError(
            f"every solution of {texts.name} is longer than the {encoder.max_tokens} positions of the model",
            hint="give shorter ones: nothing is ever truncated",
        )
    return encoded


def _lines(source: BinaryIO) -> Iterator[ParsedLine]:
    return (parse_line(line, index) for index, line in enumerate(read_lines(source)))


def _record(parsed: ParsedLine, name: str) -> Record:
    if isinstance(parsed.record, InputError):
        raise _fault(name, parsed.index + 1, parsed.record)
    return parsed.record


def _fault(name: str, line: int, error: InputError) -> ExportError:
    return ExportError(f"{name}, line {line}: {error.message}", hint=error.hint)
