"""Compiles the decode kernel for the CPU with g++ and its sanitizers, and runs it there."""

from __future__ import annotations

import shutil
import subprocess
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stepscore.engine.cuda.decode_kernel import source
from stepscore.engine.cuda.lossless import LosslessDifference

THREADS = 16
HARNESS = Path(__file__).with_suffix(".cpp")


class Sanitizer(StrEnum):
    """What ends a run: an access out of bounds or undefined arithmetic; a missing __syncthreads."""

    BOUNDS = "address,undefined"
    RACES = "thread"


def compile_kernel(folder: Path, sanitizer: Sanitizer) -> Path:
    """Return the program; skip the test where there is no compiler."""
    compiler = shutil.which("g++") or pytest.skip("g++ is not installed")
    kernel = folder / "lossless.cu"
    kernel.write_text(source(), encoding="utf-8")
    program = folder / sanitizer.name
    options = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", f"-DTHREADS={THREADS}"]
    checks = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", f'-DKERNEL="{kernel}"']
    subprocess.run([compiler, *options, *checks, str(HARNESS), "-o", str(program)], check=True)
    return program


def run_kernel(
    program: Path, reference: NDArray[np.uint16], difference: LosslessDifference, *, offset: int = 0
) -> NDArray[np.uint16]:
    """Return the policy; `offset` counts the elements by which both matrices are out of alignment."""
    sizes = [*reference.shape, len(difference.codes), len(difference.escapes), offset]
    arrays = [np.array(sizes, np.int32), reference, difference.flags, difference.codes]
    arrays += [difference.starts, difference.escapes]
    data = b"".join(array.tobytes() for array in arrays)
    done = subprocess.run([str(program)], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return np.frombuffer(done.stdout, np.uint16).reshape(reference.shape)
