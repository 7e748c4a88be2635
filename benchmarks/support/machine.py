"""The facts of the machine a result was measured on, and how results are written."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stepscore.engine.ort.provider_checks import run_tiny_model
from stepscore.enums import Provider
from stepscore.errors import StepscoreError

RESULTS = Path(__file__).parents[1] / "results"
QUICK_RESULTS = Path(__file__).parents[2] / "out" / "benchmarks-quick"
"""Where --quick writes, so that it never takes the place of a measurement."""
REFUSED = "STEPSCORE_BENCHMARK_AMX_REFUSED"
PACKAGES = (
    *("stepscore", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers", "torch", "transformers"),
    *("optimum-onnx", "llama-cpp-python", "bitsandbytes"),
)
CPU_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def facts() -> dict[str, Any]:
    """Return cores, memory, CPU, versions: what a reader needs to judge a figure."""
    return {
        "cpu": _cpu_field("model name"),
        "cpu_features": cpu_features(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def integer_unit(features: Collection[str], *, amx: bool = True) -> str:
    """Return what a CPU with these features multiplies 8-bit integers with, AMX refused or not.

    >>> integer_unit(["avx2", "avx512_vnni", "amx_int8"]), integer_unit(["avx2", "amx_int8"], amx=False)
    ('AMX', 'AVX2')
    """
    units = {"amx_int8": "AMX", "avx512_vnni": "VNNI", "avx_vnni": "VNNI", "avx2": "AVX2"}
    refused = set() if amx else {"amx_int8"}
    return next((unit for name, unit in units.items() if name in {*features} - refused), platform.machine())


def cpu_features() -> list[str]:
    """Return those of CPU_FEATURES that Linux reports."""
    flags = (_cpu_field("flags") or "").split()
    return [name for name in CPU_FEATURES if name in flags]


def start_again_without_amx(refuse: Callable[[], None]) -> None:
    """Refuse AMX to this process and what it starts; a library that has it already must be loaded anew."""
    if REFUSED not in os.environ:
        refuse()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {REFUSED: "1"})


def status_mb(key: str) -> int:
    """Return a field of /proc/self/status, such as VmHWM, in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return round(int(line.split()[1]) * 1024 / 1e6)
    raise KeyError(key)


def write_result(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write FOLDER/NAME.json with the machine's facts first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": facts(), **result}, indent=2) + "\n")
    return path


def gpu_facts() -> dict[str, Any]:
    """Return the name, memory and driver of the first GPU."""
    import pynvml  # noqa: PLC0415 - an extra

    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    return {
        "name": pynvml.nvmlDeviceGetName(device),
        "memory_gb": round(pynvml.nvmlDeviceGetMemoryInfo(device).total / 1e9, 1),
        "driver": pynvml.nvmlSystemGetDriverVersion(),
    }


def gpu_used_mb() -> int:
    """Return what the driver says is used of the first GPU's memory, MB (10^6 bytes)."""
    import pynvml  # noqa: PLC0415 - an extra

    pynvml.nvmlInit()
    return round(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used / 1e6)


@contextmanager
def gpu_peak_mb() -> Iterator[list[int]]:
    """Watch the driver's figure of used memory, less what was used before: MB, in a list of one."""
    before = gpu_used_mb()
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], gpu_used_mb() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield peak
    done.set()
    watcher.join()


def add_provider(parser: argparse.ArgumentParser) -> None:
    """Add --provider: which of ONNX Runtime's is measured, and on what the peers run."""
    choices = [Provider.CPU, Provider.CUDA]
    parser.add_argument("--provider", type=Provider, choices=choices, default=Provider.CPU)


def measured_provider(options: argparse.Namespace) -> Provider:
    """Return what was chosen; end the program where it does not run here, before anything is made."""
    provider: Provider = options.provider
    try:
        run_tiny_model(provider)
    except StepscoreError as error:
        raise SystemExit(f"{error.message}\n{error.hint}") from None
    return provider


def provider_facts(provider: Provider) -> dict[str, Any]:
    """Return what a result says of where it was measured."""
    return {"provider": provider.value} | ({"gpu": gpu_facts()} if provider is Provider.CUDA else {})


def _cpu_field(name: str) -> str | None:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(name):
            return line.split(":", 1)[1].strip()
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
