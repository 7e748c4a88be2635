"""The commands and programs of the page on inputs run as they stand, on a tiny pair."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pyarrow import ipc
from testing.doc_blocks import run

from stepscore.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "inputs.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(sh|python)?\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
ROWS = [{"id": f"a-{at}", "problem": "1 + 1?", "steps": [f"It is {at}.", "Done."]} for at in range(2)]


def blocks(language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(PAGE) if found == language]


@pytest.fixture
def folder(tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page names."""
    monkeypatch.chdir(tmp_path)
    Path("PAIR").symlink_to(tiny_pair)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    Path("solutions.jsonl").write_bytes(lines)
    Path("solutions.jsonl.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.Table.from_pylist(ROWS), "solutions.parquet")
    train = Path("dataset/train")
    train.mkdir(parents=True)
    table = pa.table({"question": ["1 + 1?"], "answer": ["Add.\n\nIt is 2."]})
    with (
        pa.OSFile(str(train / "data-00000-of-00001.arrow"), "wb") as file,
        ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    (train / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_every_command_of_the_page_runs() -> None:
    given = [line for block in blocks("") for line in block.splitlines()]
    assert len(given) == 6
    for command in given:
        if "jsonl.zst" in command:
            packed = pa.Codec("zstd").compress(Path("rewards.jsonl").read_bytes(), asbytes=True)
            Path("rewards.jsonl.zst").write_bytes(packed)
        done = CliRunner().invoke(main, shlex.split(command)[1:])
        assert done.exit_code == 0, (command, done.stderr)
    assert "rewards.parquet" in {path.name for path in Path().iterdir()}


@pytest.mark.slow
def test_a_program_in_python_and_one_in_bash_drive_it(folder: Path) -> None:
    (python,) = blocks("python")
    assert run("python", python, folder) == "0 1\n1 1\n"
    assert shutil.which("bash")
    (bash,) = blocks("sh")
    first, second = run("sh", bash, folder).splitlines()
    assert json.loads(first + "}") == {"problem": "1 + 1?", "steps": ["1 + 1 = 2."]}
    assert json.loads(second + "}") == {"problem": "1 + 1?", "steps": ["1 + 1 = 3."]}
