"""Reads the solutions for fidelity and calibration: those that come with stepscore, or a file of the user."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from stepscore.enums import Convention
from stepscore.errors import ExportError, InputError, TooLong
from stepscore.jobs.jsonl import ParsedLine, not_empty, parse_line, read_lines
from stepscore.prompt.encoder import EncodedPrompt, PromptEncoder
from stepscore.records import Record, of_texts

BUNDLED = "bundled"
CALIBRATION_TOKENS = 8_000
"""Tokens of the bundled solutions that an export is calibrated on: more reduced the error little further."""
MAX_CALIBRATION_TOKENS = 20_000
"""Tokens of a user's calibration file that are used."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Solutions, one per line of a JSONL file; `path` is None for those that come with stepscore."""

    path: Path | None
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        """Name of the data in a manifest."""
        return BUNDLED if self.path is None else self.path.name


NO_TEXTS = Texts(None, ())
"""No solutions: nothing is measured or calibrated on them."""


def bundled_texts() -> Texts:
    """Return twelve solutions of 110 to 1,100 characters, a third of them with a wrong step."""
    return _bundled("fidelity.jsonl")


def calibration_texts() -> Texts:
    """Return 320 solutions in many styles, 34,000 tokens of Qwen2.5, for the calibration of a base."""
    return _bundled("calibration.jsonl")


def _bundled(name: str) -> Texts:
    data = (files("stepscore_export") / "data" / name).read_bytes()
    return Texts(None, tuple(_record(parsed, BUNDLED) for parsed in _lines(BytesIO(data))))


def read_texts(path: Path) -> Texts:
    """Read a file in the input format of `stepscore score`; ExportError names the first invalid line."""
    try:
        with path.open("rb") as source:
            records = tuple(_record(parsed, path.name) for parsed in _lines(source))
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror or error}") from None
    if not records:
        raise ExportError(
            f"{path.name} is empty", hint='write lines such as {"problem": "...", "steps": ["...", "..."]}'
        )
    return Texts(path, records)


def encode_texts(texts: Texts, encoder: PromptEncoder, max_tokens: int | None = None) -> list[EncodedPrompt]:
    """Encode by the card convention, up to the solution that reaches `max_tokens` tokens in all.

    Solutions longer than the encoder allows are skipped. Of bundled texts all that do not fit the model are
    skipped, possibly every one; a user's file with another fault, or with nothing left, is an ExportError.
    """
    encoded: list[EncodedPrompt] = []
    total = 0
    for position, record in enumerate(texts.records, start=1):
        try:
            encoded.append(encoder.encode(record.problem, record.steps, Convention.CARD))
        except TooLong:
            continue
        except InputError as error:
            if texts.path is not None:
                raise _fault(f"{texts.name}, record {position}", error) from None
            continue
        total += len(encoded[-1].token_ids)
        if max_tokens is not None and total >= max_tokens:
            break
    if texts.path is not None and not encoded:
        raise ExportError(
            f"all solutions of {texts.name} are longer than the {encoder.max_tokens} positions of the model",
            hint="use shorter solutions: nothing is truncated",
        )
    return encoded


def _lines(source: BinaryIO) -> Iterator[ParsedLine]:
    lines = enumerate(not_empty(read_lines(source)))
    return (parse_line(line, index, number=number) for index, (number, line) in lines)


def _record(parsed: ParsedLine, name: str) -> Record:
    record = of_texts(parsed.record)
    if isinstance(record, InputError):
        raise _fault(f"{name}, line {parsed.number}", record)
    return record


def _fault(place: str, error: InputError) -> ExportError:
    return ExportError(f"{place}: {error.message}", hint=error.hint)
