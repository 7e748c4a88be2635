"""ONNX Runtime's own profile of the graphs of a pair, operator by operator."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

INTEGER_PRODUCT = "MatMulIntegerToFloat"


@dataclass(frozen=True, slots=True)
class Product:
    """The shape of a matrix product: [rows, depth] times [depth, columns]."""

    rows: int
    depth: int
    columns: int

    @property
    def operations(self) -> int:
        """Return its multiplications and additions.

        >>> Product(2, 3, 5).operations
        60
        """
        return 2 * self.rows * self.depth * self.columns


@dataclass(frozen=True, slots=True)
class Kernel:
    """One run of one operator; `product` is the shape of an integer product, None of anything else."""

    stage: str
    operator: str
    microseconds: int
    product: Product | None


@contextmanager
def profiled(folder: Path) -> Iterator[list[Kernel]]:
    """Profile every session opened inside; its kernels are in the list afterwards, stage by stage."""
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
    """Yield the kernels of one session, in the order they ran in."""
    for event in json.loads(profile.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            operator = event["args"]["op_name"]
            if operator == "If":  # the kernels of its branch have events of their own
                continue
            shape = _product(event["args"]) if operator == INTEGER_PRODUCT else None
            yield Kernel(stage, operator, event["dur"], shape)


def of_stages(kernels: Iterable[Kernel], *stages: str) -> list[Kernel]:
    """Return the kernels of these stages only."""
    return [kernel for kernel in kernels if kernel.stage in stages]


def after_first_run(kernels: Sequence[Kernel], runs: int) -> list[Kernel]:
    """Drop the first of equal runs of one stage: its memory was new.

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


def _product(args: dict[str, Any]) -> Product:
    # Weights that ONNX Runtime has packed are not among the inputs: columns are those of the output.
    ((rows, depth),) = args["input_type_shape"][0].values()
    ((_, columns),) = args["output_type_shape"][0].values()
    return Product(rows, depth, columns)
