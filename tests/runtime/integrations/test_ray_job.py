"""A Ray job on two cores, the code of docs/clusters.md: an actor dies, the run fails, the next goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from testing.doc_blocks import run

from stepscore import Scorer
from stepscore.records import Record

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).parents[3]
BLOCKS = re.findall(
    r"^```python\n(.*?)^```\n",
    (ROOT / "docs" / "clusters.md")
    .read_text(encoding="utf-8")
    .partition("## Ray Data")[2]
    .partition("\n## ")[0],
    re.MULTILINE | re.DOTALL,
)
PROBLEMS, SAMPLES = 20, 10
BAD = {7: "no_steps", 123: "invalid_record"}


def rows() -> list[dict[str, Any]]:
    """Solutions of 20 problems in turn, so that no two neighbours share one; two rows are bad."""
    made = [
        {
            "id": at,
            "problem": f"Ann has {3 + at % PROBLEMS} pens and buys {at % PROBLEMS} more. How many?",
            "steps": [f"{3 + at % PROBLEMS} + {at % PROBLEMS} is the sum.", f"So {at // PROBLEMS}."],
        }
        for at in range(PROBLEMS * SAMPLES)
    ]
    made[7]["steps"] = []
    made[123]["problem"] = None
    return made


@dataclass(frozen=True)
class Job:
    """What both runs printed and left behind."""

    told: dict[str, Any]
    rows: dict[int, dict[str, Any]]
    left: list[int]
    folder: Path


def processes(mark: str) -> list[int]:
    """The processes that were started with this mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def alive_after(seconds: float, mark: str) -> list[int]:
    end = time.monotonic() + seconds
    while (left := processes(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


@pytest.fixture(scope="module")
def job(tiny_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'stepscore[ray]'")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path_factory.mktemp("ray")
    (folder / "pair").symlink_to(tiny_pair)
    (folder / "solutions").mkdir()
    pq.write_table(pa.Table.from_pylist(rows()), folder / "solutions" / "part-0.parquet")
    (folder / "job.py").write_text(BLOCKS[0])
    mark = f"STEPSCORE_RAY_TEST={uuid.uuid4().hex}"
    ray_folder = tempfile.mkdtemp(prefix="ray-")  # the paths of sockets must be short
    environment = {
        **os.environ,
        **dict([mark.split("=")]),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,  # else Ray writes one to the home folder
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, ROOT / "testing" / "ray_job.py", folder / "job.py", folder, ray_folder]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
        scored = pq.read_table(folder / "scored").to_pylist()
        told = json.loads(done.stdout.splitlines()[-1])
        yield Job(told, {row["id"]: row for row in scored}, alive_after(120, mark), folder)
    finally:
        for left in processes(mark):
            os.kill(left, 9)
        shutil.rmtree(ray_folder, ignore_errors=True)


def test_a_run_outlives_an_actor_and_the_next_run_goes_on_after_a_failure(job: Job) -> None:
    first, second = job.told["first"], job.told["second"]
    assert "this batch fails" in job.told["error"]
    assert {"killed", "failed"} <= {path.name for path in (job.folder / "events").iterdir()}
    assert 0 < first["rows"] == first["ids"] < PROBLEMS * SAMPLES
    assert second["rows"] == second["ids"] == PROBLEMS * SAMPLES


def test_rewards_equal_those_of_a_scorer_but_for_the_rounding_of_other_batches(
    job: Job, tiny_pair: Path
) -> None:
    """Log-probs differ by at most 1e-5 nats at fp32 where a batch is composed otherwise (docs/scoring.md)."""
    given = [row for row in rows() if row["id"] not in BAD]
    with Scorer.load(tiny_pair, threads=1) as scorer:
        results = scorer.score(Record(row["problem"], tuple(row["steps"])) for row in given)
        for row, result in zip(given, results, strict=True):
            found = job.rows[row["id"]]
            bound = scorer.beta * 2e-5 * result.num_tokens
            assert found["cumulative_rewards"] == pytest.approx(result.cumulative_rewards, abs=bound, rel=0)
            assert found["outcome_reward"] == found["cumulative_rewards"][-1]
            assert found["error"] is None


def test_bad_rows_have_their_error_and_nothing_else(job: Job) -> None:
    failed = {row["id"]: row["error"]["code"] for row in job.rows.values() if row["error"]}
    assert failed == BAD
    assert all(job.rows[at]["cumulative_rewards"] is None for at in BAD)


def test_no_process_of_ray_outlives_the_job(job: Job) -> None:
    assert job.left == []


def test_the_page_reads_what_was_written(job: Job) -> None:
    assert (
        run("python", BLOCKS[1], job.folder).splitlines()[0]
        == f"{len(BAD)} of {PROBLEMS * SAMPLES} rows failed"
    )
