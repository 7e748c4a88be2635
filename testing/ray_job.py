"""Run a job of Ray Data twice in one cluster of two cores; the first run loses an actor, then fails.

    python ray_job.py CODE FOLDER RAY_FOLDER

CODE is a file that scores with `score_dataset` and `write_scores`, run in FOLDER. The second batch kills its
actor by os._exit, which Ray mends. The first batch after two files are committed raises, which ends the run.
The last line that is printed is a JSON object of what happened.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray

from stepscore.integrations import ray_data
from stepscore.integrations.ray_checkpoint import PENDING


def dying(base: type[ray_data.PairActor], folder: Path, checkpoint: Path) -> type[ray_data.PairActor]:
    """An actor that dies once and raises once; a local class, which Ray sends to its processes by value."""

    class Dying(base):  # type: ignore[valid-type,misc]
        def __call__(self, table: Any) -> Any:
            (folder / f"batch-{os.getpid()}-{uuid.uuid4()}").write_text(str(len(table)))
            begun = len(list(folder.glob("batch-*")))
            if begun >= 2 and self.first("killed"):
                os._exit(1)
            if len(self.committed()) >= 2 and self.first("failed"):
                raise RuntimeError("this batch fails")
            return super().__call__(table)

        def first(self, event: str) -> bool:
            try:
                (folder / event).touch(exist_ok=False)
            except FileExistsError:
                return False
            return True

        def committed(self) -> list[Path]:
            return [path for path in checkpoint.glob("*.parquet") if not path.name.endswith(PENDING)]

    return Dying


def facts(folder: Path, output: Path) -> dict[str, Any]:
    """Count what has been scored and written so far."""
    batches = [path.name.split("-")[1] for path in folder.glob("batch-*")]
    ids = pq.read_table(output, columns=["id"])["id"].to_pylist()
    return {"batches": len(batches), "actors": len(set(batches)), "rows": len(ids), "ids": len(set(ids))}


def main(code: str, folder: str, ray_folder: str) -> None:
    """Run the job twice and print what happened."""
    os.chdir(folder)
    events, output = Path("events").absolute(), Path("scored")
    events.mkdir()
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 << 20,
        _temp_dir=ray_folder,
        _system_config={"idle_worker_killing_time_threshold_ms": 60_000},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray_data.PairActor = dying(ray_data.PairActor, events, Path("scored.checkpoint").absolute())
    job = compile(Path(code).read_text(encoding="utf-8"), code, "exec")
    error = ""
    try:
        exec(job, {})
    except Exception as raised:
        error = "\n".join(line for line in str(raised).splitlines() if "this batch fails" in line)
    first = facts(events, output)
    exec(job, {})
    print(json.dumps({"error": error, "first": first, "second": facts(events, output)}))
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
