"""The same records in any format are the same lines, from a file and from a pipe, whatever the name says."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pyarrow import ipc
from testing.fake_scorer import FakeScorer
from testing.outputs import answers, stop_clock
from testing.uninstalled import uninstall

from stepscore.cli.main import main
from stepscore.errors import ExtraMissing, InputUnreadable
from stepscore.jobs.inputs.dataset_folder import SPLITS, STATE, data_files
from stepscore.jobs.inputs.opening import lines_of_stream, open_input
from stepscore.jobs.jsonl import MAX_LINE_BYTES, read_lines
from stepscore.jobs.source import parsed_lines
from stepscore.records import Record
from stepscore.scorer import Scorer

ROWS = [
    {
        "id": f"r{at}",
        "problem": f"p{at // 4} ü",
        "steps": [f"{at}", "Done."],
        "label": at % 3 - 1,
        "share": 0.1 * at,
    }
    for at in range(100)
]
JSON_LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
TABLE = pa.Table.from_pylist(ROWS)


def zstandard(data: bytes) -> bytes:
    return cast(bytes, pa.Codec("zstd").compress(data, asbytes=True))


def parquet(table: pa.Table = TABLE, **options: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def arrow(new: Callable[..., ipc.RecordBatchStreamWriter], table: pa.Table = TABLE, rows: int = 30) -> bytes:
    out = io.BytesIO()
    with new(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return out.getvalue()


FORMATS = {
    "JSON Lines": JSON_LINES,
    "gzip": gzip.compress(JSON_LINES),
    "two members": gzip.compress(JSON_LINES[:500]) + gzip.compress(JSON_LINES[500:]) + b"\0" * 100,
    "Zstandard": zstandard(JSON_LINES),
    "two frames": zstandard(JSON_LINES[:500])
    + b"\x50\x2a\x4d\x18\x04\0\0\0skip"
    + zstandard(JSON_LINES[500:]),
    "a skippable frame first": b"\x5f\x2a\x4d\x18\0\0\0\0" + zstandard(JSON_LINES),
    "Parquet": parquet(row_group_size=33),
    "Arrow file": arrow(ipc.new_file),
    "Arrow stream": arrow(ipc.new_stream),
    "gzip of Parquet": gzip.compress(parquet()),
    "Zstandard of an Arrow stream": zstandard(arrow(ipc.new_stream)),
}


@contextmanager
def opened(data: bytes, kind: str, path: Path) -> Iterator[BinaryIO]:
    """Open data as a file, or as a pipe that is fed byte by byte at first."""
    path.write_bytes(data)
    if kind == "file":
        with open_input(path) as lines:
            yield lines
        return
    read, write = os.pipe()

    def feed() -> None:
        with os.fdopen(write, "wb", buffering=0) as pipe:
            for at in range(10):
                pipe.write(data[at : at + 1])
            pipe.write(data[10:])

    threading.Thread(target=feed, daemon=True).start()
    with os.fdopen(read, "rb", buffering=0) as pipe, ExitStack() as stack:
        yield lines_of_stream(cast(BinaryIO, pipe), "standard input", stack)


@pytest.mark.parametrize("kind", ["file", "pipe"])
@pytest.mark.parametrize("data", FORMATS.values(), ids=FORMATS.keys())
def test_any_format_gives_the_same_records(tmp_path: Path, data: bytes, kind: str) -> None:
    with opened(data, kind, tmp_path / "in.txt") as lines:
        assert [json.loads(line) for line in read_lines(lines)] == ROWS


def test_the_name_decides_nothing(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl.gz").write_bytes(JSON_LINES)
    (tmp_path / "link.parquet").symlink_to("in.jsonl.gz")
    with open_input(tmp_path / "link.parquet") as lines:
        assert b"\n".join(read_lines(lines)) + b"\n" == JSON_LINES


def test_a_pipe_is_opened_without_waiting_for_its_first_byte() -> None:
    read, write = os.pipe()
    with (
        os.fdopen(read, "rb", buffering=0) as pipe,
        os.fdopen(write, "wb", buffering=0) as out,
        ExitStack() as stack,
    ):
        lines = lines_of_stream(cast(BinaryIO, pipe), "standard input", stack)  # would wait for ever
        out.write(b"P\n")
        assert next(read_lines(lines)) == b"P"


def test_plain_lines_need_no_pyarrow_and_tables_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall(monkeypatch, "pyarrow", "stepscore.jobs.inputs.tables", "stepscore.jobs.inputs.row_lines")
    for name in ("JSON Lines", "gzip"):
        with opened(FORMATS[name], "file", tmp_path / "in") as lines:
            assert len(list(read_lines(lines))) == len(ROWS)
    for name in ("Parquet", "Zstandard", "Arrow stream"):
        with (
            pytest.raises(ExtraMissing, match="pyarrow is not installed") as raised,
            opened(FORMATS[name], "file", tmp_path / "in") as lines,
        ):
            next(read_lines(lines))
        assert raised.value.hint == "pip install 'stepscore[data]'"


# Damage and bombs

CUT = {
    "gzip": (FORMATS["gzip"][:-100], "not whole gzip data"),
    "gzip, garbage behind": (FORMATS["gzip"] + b"garbage", "not whole gzip data: Not a gzipped file"),
    "Zstandard": (
        zstandard(JSON_LINES[:4000]) + zstandard(JSON_LINES[4000:])[:-9],
        "not whole Zstandard data",
    ),
    "Arrow stream": (FORMATS["Arrow stream"][: len(FORMATS["Arrow stream"]) * 3 // 4], "cannot be read"),
}


@pytest.mark.parametrize(("data", "message"), CUT.values(), ids=CUT.keys())
def test_what_is_before_the_damage_is_answered_and_then_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)
    source, out = tmp_path / "damaged", tmp_path / "out"
    source.write_bytes(data)
    for _ in range(2):  # the second run finds the same, and changes nothing
        done = CliRunner().invoke(main, ["score", "pair", str(source), "-o", str(out), "--quiet"])
        assert done.exit_code == 3
        assert message in done.stderr
        assert str(source) in done.stderr
        found = answers(out.read_bytes())
        assert len(found) > 25
        assert [{name: answer[name] for name in ROWS[0]} for answer in found] == ROWS[: len(found)]


def test_damage_at_once_leaves_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)
    for data in (FORMATS["Parquet"][:-10], b"PAR1", b"\x1f\x8b\x08\n", b"ARROW1\0\0", b"\xff" * 8):
        (tmp_path / "in").write_bytes(data)
        done = CliRunner().invoke(main, ["score", "pair", str(tmp_path / "in"), "-o", str(tmp_path / "out")])
        assert done.exit_code == 3, done.output
        assert str(tmp_path / "in") in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "compress", [lambda data: gzip.compress(data, 1), zstandard], ids=["gzip", "Zstandard"]
)
def test_a_bomb_is_one_line_that_is_too_large(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    record = b'{"id": %d, "problem": "p", "steps": ["s"]}\n'
    (tmp_path / "in").write_bytes(compress(record % 7 + b"x" * (4 * MAX_LINE_BYTES) + b"\n" + record % 8))
    with open_input(tmp_path / "in") as lines:
        codes = [getattr(line.record, "code", "") for line in parsed_lines(lines)]
    assert codes == ["", "too_large", ""]


def test_data_compressed_again_and_again_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(gzip.compress(zstandard(JSON_LINES)))
    with pytest.raises(InputUnreadable, match="compressed twice"), open_input(tmp_path / "in"):
        pass


# Folders of `datasets`


def dataset(folder: Path, rows: list[int], **state: object) -> Path:
    """A folder as Dataset.save_to_disk of datasets 4 writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{at:05}-of-{len(rows):05}.arrow" for at in range(len(rows))]
    start = 0
    for name, count in zip(names, rows, strict=True):
        (folder / name).write_bytes(arrow(ipc.new_stream, TABLE.slice(start, count)))
        start += count
    (folder / "dataset_info.json").write_text("{}")
    files = {"_data_files": [{"filename": name} for name in names]}
    (folder / STATE).write_text(json.dumps(files | {"_split": None} | state))
    return folder


def test_a_folder_of_datasets_is_read_in_the_order_of_its_parts(tmp_path: Path) -> None:
    with open_input(dataset(tmp_path / "set", [40, 0, 60])) as lines:
        assert [json.loads(line) for line in read_lines(lines)] == ROWS


def test_a_dict_of_datasets_names_its_splits(tmp_path: Path) -> None:
    dataset(tmp_path / "train", [5])
    (tmp_path / SPLITS).write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputUnreadable, match="several splits: train, test") as raised:
        data_files(tmp_path)
    assert str(tmp_path / "train") in (raised.value.hint or "")
    assert len(data_files(tmp_path / "train")) == 1


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_indices_files": [{"filename": "indices.arrow"}]}, "a file of indices, which is not read"),
        ({"_data_files": [{"filename": "../secret.arrow"}]}, "names a data file"),
        ({"_data_files": [{"filename": "/etc/passwd"}]}, "names a data file"),
        ({"_data_files": [{"filename": ".."}]}, "names a data file"),
        ({"_data_files": [{"filename": "fifo"}]}, "missing or no regular file"),
        ({"_data_files": [7]}, "names a data file"),
        ({"_data_files": {}}, "no list `_data_files`"),
        ({"_data_files": []}, "names no data file"),
    ],
)
def test_a_folder_that_is_not_read_as_it_is_meant_is_rejected(
    tmp_path: Path, state: dict[str, object], message: str
) -> None:
    folder = dataset(tmp_path / "set", [5], **state)
    os.mkfifo(folder / "fifo")
    with pytest.raises(InputUnreadable, match=message):
        data_files(folder)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]"])
def test_a_state_that_is_no_object_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE).write_text(text)
    with pytest.raises(InputUnreadable, match=f"cannot read .*{STATE}"):
        data_files(tmp_path)


def test_another_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match="not a data set that save_to_disk wrote"):
        data_files(tmp_path)


# Commands


def test_every_command_reads_any_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)
    stop_clock(monkeypatch)

    def run(*arguments: object) -> bytes:
        done = CliRunner().invoke(main, list(map(str, arguments)))
        assert done.exit_code == 0, done.output
        return done.stdout_bytes

    plain = tmp_path / "in.jsonl"
    plain.write_bytes(JSON_LINES)
    scored = run("score", "pair", plain, "--quiet")
    commands = [["select"], ["evaluate", "processbench", "--threshold", "0", "--json"], ["report"]]
    (tmp_path / "out").write_bytes(scored)
    expected = [run(*command, tmp_path / "out") for command in commands]
    for compress in (gzip.compress, zstandard):
        (tmp_path / "out").write_bytes(compress(scored))
        assert [run(*command, tmp_path / "out") for command in commands] == expected
    dataset(tmp_path / "set", [100])
    for source in (plain, tmp_path / "set"):
        limited = run("score", "pair", source, "--limit", 3, "--problem-field", "id", "--quiet")
        assert [answer["problem"] for answer in answers(limited)] == ["r0", "r1", "r2"]


def test_rows_are_records(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(FORMATS["Parquet"])
    with open_input(tmp_path / "in") as lines:
        assert getattr(lines, "num_rows", None) == len(ROWS)
        records = [line.record for line in parsed_lines(lines, 2)]
    assert records == [Record("p0 ü", ("0", "Done.")), Record("p0 ü", ("1", "Done."))]
