"""Profile the graphs of a pair with ONNX Runtime, operator by operator."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

INTEGER_GEMM = "MatMulIntegerToFloat"


@dataclass(frozen=True, slots=True)
class Gemm:
    """Shape of a GEMM: [rows, depth] times [depth, columns]."""

    rows: int
    depth: int
    columns: int

    @property
    def operations(self) -> int:
        """Return the number of multiplications and additions.

        >>> Gemm(2, 3, 5).operations
        60
        """
        return 2 * self.rows * self.depth * self.columns


@dataclass(frozen=True, slots=True)
class Kernel:
    """One run of one operator; `gemm` is the shape of an integer GEMM, else None."""

    stage: str
    operator: str
    microseconds: int
    gemm: Gemm | None


@contextmanager
def profiled(folder: Path) -> Iterator[list[Kernel]]:
    """Profile every session opened in the context; afterwards the list has its kernels, stage by stage."""
    plain = ort.InferenceSession
    sessions: list[tuple[str, ort.InferenceSession]] = []
    kernels: list[Kernel] = []

    def profiling(model: str | bytes, options: ort.SessionOptions, **rest: Any) -> ort.InferenceSession:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / f"profile-{len(sessions)}")
        session = plain(model, options, **rest)
        stage = (
            Path(model).name.split(".")[0] if isinstance(model, str) else "probe"
        )  # body.onnx, body.u8.onnx
        sessions.append((stage, session))
        return session

    ort.InferenceSession = profiling
    try:
        yield kernels
    finally:
        ort.InferenceSession = plain
        for stage, session in sessions:
            kernels += read_profile(stage, Path(session.end_profiling()))


def read_profile(stage: str, profile: Path) -> Iterator[Kernel]:
    """Yield the kernels of one session, in execution order."""
    for event in json.loads(profile.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            operator = event["args"]["op_name"]
            if operator == "If":  # kernels of its branch have separate events
                continue
            shape = _gemm(event["args"]) if operator == INTEGER_GEMM else None
            yield Kernel(stage, operator, event["dur"], shape)


def of_stages(kernels: Iterable[Kernel], *stages: str) -> list[Kernel]:
    """Return the kernels of these stages."""
    return [kernel for kernel in kernels if kernel.stage in stages]


def after_first_run(kernels: Sequence[Kernel], runs: int) -> list[Kernel]:
    """Drop the first of equal runs of one stage: it allocates memory.

    >>> after_first_run([Kernel("body", name, 1, None) for name in "aaabbb"], 2) == [
    ...     Kernel("body", "b", 1, None)] * 3
    True
    """
    return list(kernels[len(kernels) // runs :])


def shares(kernels: Iterable[Kernel], most: int = 14) -> dict[str, float]:
    """Return the share of the kernels' time by operator, the largest first."""
    spent: Counter[str] = Counter()
    for kernel in kernels:
        spent[kernel.operator] += kernel.microseconds
    total = spent.total()
    return {name: round(time / total, 4) for name, time in spent.most_common(most)}


def _gemm(args: dict[str, Any]) -> Gemm:
    # Prepacked weights are not among the inputs: columns are those of the output.
    ((rows, depth),) = args["input_type_shape"][0].values()
    ((_, columns),) = args["output_type_shape"][0].values()
    return Gemm(rows, depth, columns)
