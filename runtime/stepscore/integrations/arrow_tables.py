"""Score Arrow tables: rows -> records, in the order of their problems -> the same rows with their rewards.

Nothing here needs Ray: a `TableScorer` is a function from table to table, for any engine that maps such a
function over its batches (`map_batches` of Ray Data, `mapInArrow` of Spark).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from stepscore.errors import (
    DuplicateId,
    InputError,
    InvalidRecord,
    PairIncompatible,
    SourceError,
    StepscoreError,
)
from stepscore.extras import naming_extras
from stepscore.jobs.provenance import KEY, Provenance, ScoringOptions
from stepscore.jobs.schema import ErrorLine
from stepscore.records import (
    BY_ACCEPTED_NAMES,
    IDS_NAMES,
    MESSAGES,
    PROBLEM_NAMES,
    STEPS_NAMES,
    Reading,
    Record,
    TokenRecord,
)
from stepscore.results import Result, TokenResult
from stepscore.scorer import Scorer

with naming_extras():
    import pyarrow as pa

Item = Record | TokenRecord | InputError
ItemOutcome = Result | TokenResult | StepscoreError

METADATA_KEY = KEY.encode()
"""Key of the provenance in the metadata of a table's schema, which Parquet files keep."""

_READ_NAMES = (*PROBLEM_NAMES, *STEPS_NAMES, MESSAGES, "labels", "scores", *IDS_NAMES, "step_ends")

_LIST = pa.list_(pa.float64())
REWARD_COLUMNS = pa.schema(
    {
        "cumulative_rewards": _LIST,
        "step_rewards": _LIST,
        "outcome_reward": pa.float64(),
        "error": pa.struct({"code": pa.string(), "message": pa.string()}),
    }
)
"""Columns that scoring adds; a row has rewards and a null error, or an error and null rewards."""


class TableScorer:
    """A loaded pair, called with a pyarrow.Table of solutions to score.

    A row is a record by the accepted field names, `messages`, or `prompt_token_ids` and `response_token_ids`;
    a null is a field that is not given. The call returns the same rows in the same order, with REWARD_COLUMNS
    in place of columns of these names, and provenance in the metadata of the schema. It raises nothing for
    a row: a row that cannot be scored has its `error`. Rows of one problem are scored next to each other, so
    that their common prefixes are computed once.

    With `id_column`, a row whose id an earlier row of the table has is a DuplicateId, and a null id a
    SourceError. `fingerprint` is that of the pair, beta and convention expected here: PairIncompatible where
    this machine has others. `load_options` are those of Scorer.load.
    """

    def __init__(
        self,
        pair: str | Path,
        *,
        id_column: str | None = None,
        reading: Reading = BY_ACCEPTED_NAMES,
        fingerprint: Mapping[str, str] | None = None,
        **load_options: Any,
    ) -> None:
        self.scorer = Scorer.load(pair, **load_options)
        found = self.scorer.fingerprint()
        if fingerprint is not None and found != fingerprint:
            self.scorer.close()
            raise PairIncompatible(
                f"the pair in {pair} on this machine has the fingerprint {found}, expected {fingerprint}",
                hint="copy the same pair to every machine, or put it on a shared file system",
            )
        self._id_column = id_column
        self._reading = reading
        options = ScoringOptions.of(tokens=False, reading=reading)
        self._provenance = msgspec.json.encode(Provenance.of_run(found, options))

    def __call__(self, table: Any) -> Any:
        """Return the table with the rewards or the error of each row."""
        items = records_of(table, self._reading)
        if self._id_column is not None:
            ids = checked_ids(table, self._id_column)
            items = [*_without_repeats(items, ids)]
        order = together(problem_keys(items))
        outcomes: dict[int, ItemOutcome] = dict(self.scorer.stream((at, items[at]) for at in order))
        scored = with_outcomes(table, [outcomes[at] for at in range(len(items))])
        return scored.replace_schema_metadata(
            {**(table.schema.metadata or {}), METADATA_KEY: self._provenance}
        )


def records_of(table: Any, reading: Reading = BY_ACCEPTED_NAMES) -> list[Item]:
    """Return the record of each row of a pyarrow.Table, or the InputError that prevents it.

    >>> records_of(pa.table({"question": ["1+1?", None], "steps": [["So 2."], ["So 3."]]}))[0]
    Record(problem='1+1?', steps=('So 2.',), unfinished=False)
    """
    named = {*_READ_NAMES, reading.problem_field, reading.steps_field}
    columns = {name: _values(table.column(name)) for name in table.column_names if name in named}
    # Names of the other columns are listed where a record lacks its problem or its steps.
    others: dict[str, Any] = {name: None for name in table.column_names if name not in named}
    return [_record(others, columns, at, reading) for at in range(len(table))]


def _record(
    others: Mapping[str, Any], columns: Mapping[str, Sequence[Any]], at: int, reading: Reading
) -> Item:
    given = {name: values[at] for name, values in columns.items() if values[at] is not None}
    try:
        for name, value in given.items():
            if isinstance(value, UnicodeDecodeError):
                raise InvalidRecord(f"`{name}` is not UTF-8: {value.reason} at byte {value.start}")
        return reading.record({**others, **given})
    except InputError as error:
        return error.untraced()


def _values(column: Any) -> list[Any]:
    """Return the values of a column as Python objects, those that are not UTF-8 as their error."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value(column[at]) for at in range(len(column))]
    return values


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error.with_traceback(None)


def checked_ids(table: Any, id_column: str) -> list[Any]:
    """Return the ids of the rows; raise SourceError where the column is missing or has a null."""
    if id_column not in table.column_names:
        raise SourceError(
            f"there is no column `{id_column}` of ids; the columns are {', '.join(table.column_names)}",
            hint="name the column by id_column",
        )
    ids = table.column(id_column)
    if ids.null_count:
        raise SourceError(
            f"{ids.null_count} of {len(ids)} rows have no `{id_column}`",
            hint="give every row an id of its own, such as its number: by it a run goes on after a failure",
        )
    return _values(ids)


def _without_repeats(items: Iterable[Item], ids: Iterable[Any]) -> Iterator[Item]:
    seen = set()
    for item, row_id in zip(items, ids, strict=True):
        key = str(row_id)
        yield DuplicateId("duplicate id: an earlier row of this batch has it") if key in seen else item
        seen.add(key)


def problem_keys(items: Iterable[Item]) -> list[int]:
    """Return a 64-bit key per row: equal for the solutions of one problem, on every machine.

    It is the BLAKE2b digest of the problem's text or of the prompt's token ids. Rows without a record share
    no key, so that many of them do not meet in one batch.
    """
    return [_problem_key(item, at) for at, item in enumerate(items)]


def _problem_key(item: Item, at: int) -> int:
    match item:
        case Record():
            text = f"text {item.problem}"
        case TokenRecord():
            text = f"ids {item.prompt_token_ids}"
        case _:
            text = f"row {at}"
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def together(keys: Sequence[int]) -> list[int]:
    """Return the positions, those of equal keys next to each other, in the order of their first one.

    >>> together([7, 5, 7, 9, 5])
    [0, 2, 1, 4, 3]
    """
    first: dict[int, int] = {}
    for at, key in enumerate(keys):
        first.setdefault(key, at)
    return sorted(range(len(keys)), key=lambda at: first[keys[at]])


def with_outcomes(table: Any, outcomes: Sequence[ItemOutcome]) -> Any:
    """Return the table with REWARD_COLUMNS, in place of columns of these names."""
    rows = [_row(outcome) for outcome in outcomes]
    kept = table.select([name for name in table.column_names if name not in REWARD_COLUMNS.names])
    for field in REWARD_COLUMNS:
        kept = kept.append_column(field, pa.array([row[field.name] for row in rows], field.type))
    return kept


def _row(outcome: ItemOutcome) -> dict[str, Any]:
    if isinstance(outcome, StepscoreError):
        error = ErrorLine.of(0, outcome).error
        return {
            **dict.fromkeys(REWARD_COLUMNS.names),
            "error": {"code": error.code, "message": error.message},
        }
    rewards = {name: getattr(outcome, name) for name in REWARD_COLUMNS.names if name != "error"}
    return {**rewards, "error": None}
