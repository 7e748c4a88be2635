"""Facts of the machine a result was measured on, and the memory of processes and GPUs."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stepscore.enums import Provider

PACKAGES = (
    *("stepscore", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers", "torch", "transformers"),
    *("optimum-onnx", "llama-cpp-python", "bitsandbytes"),
)
CPU_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def facts() -> dict[str, Any]:
    """Return the CPU and its features, cores, memory, load and versions of packages."""
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
    """Return the instructions that a CPU with these features multiplies 8-bit integers with.

    >>> integer_unit(["avx2", "avx512_vnni", "amx_int8"]), integer_unit(["avx2", "amx_int8"], amx=False)
    ('AMX', 'AVX2')
    """
    units = {"amx_int8": "AMX", "avx512_vnni": "VNNI", "avx_vnni": "VNNI", "avx2": "AVX2"}
    denied = set() if amx else {"amx_int8"}
    return next((unit for name, unit in units.items() if name in {*features} - denied), platform.machine())


def cpu_features() -> list[str]:
    """Return the entries of CPU_FEATURES that Linux reports."""
    flags = (_cpu_field("flags") or "").split()
    return [name for name in CPU_FEATURES if name in flags]


def status_mb(key: str) -> int:
    """Return a field of /proc/self/status, such as VmHWM, in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return round(int(line.split()[1]) * 1024 / 1e6)
    raise KeyError(key)


def gpu_facts() -> dict[str, Any]:
    """Return the name, memory and driver of the first GPU."""
    nvml, device = _first_gpu()
    return {
        "name": nvml.nvmlDeviceGetName(device),
        "memory_gb": round(nvml.nvmlDeviceGetMemoryInfo(device).total / 1e9, 1),
        "driver": nvml.nvmlSystemGetDriverVersion(),
    }


def gpu_limits() -> dict[str, Any]:
    """Return the highest clocks, the power limit and the link of the first GPU, as nvidia-smi shows them."""
    nvml, device = _first_gpu()
    return {
        "sm_mhz_most": nvml.nvmlDeviceGetMaxClockInfo(device, nvml.NVML_CLOCK_SM),
        "memory_mhz_most": nvml.nvmlDeviceGetMaxClockInfo(device, nvml.NVML_CLOCK_MEM),
        "watts_most": round(nvml.nvmlDeviceGetEnforcedPowerLimit(device) / 1e3),
        "pcie": nvml.nvmlDeviceGetMaxPcieLinkGeneration(device),
        "pcie_lanes": nvml.nvmlDeviceGetMaxPcieLinkWidth(device),
    }


def gpu_load() -> dict[str, float]:
    """Return clock, power and temperature of the first GPU now."""
    nvml, device = _first_gpu()
    return {
        "sm_mhz": nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM),
        "watts": nvml.nvmlDeviceGetPowerUsage(device) / 1e3,
        "celsius": nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU),
    }


def gpu_used_mb() -> int:
    """Return the used memory of the first GPU as its driver reports it, MB (10^6 bytes)."""
    nvml, device = _first_gpu()
    return round(nvml.nvmlDeviceGetMemoryInfo(device).used / 1e6)


def _first_gpu() -> tuple[Any, Any]:
    import pynvml  # noqa: PLC0415 - an extra

    pynvml.nvmlInit()
    return pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)


@contextmanager
def gpu_peak_mb() -> Iterator[list[int]]:
    """Sample the used memory of the first GPU; the list holds its peak above the start, MB (10^6 bytes)."""
    before = gpu_used_mb()
    with sampled_peak(lambda: gpu_used_mb() - before) as peak:
        yield peak


@contextmanager
def sampled_peak(used_mb: Callable[[], int]) -> Iterator[list[int]]:
    """Sample a figure every 10 ms; the list holds the largest so far."""
    peak, done = [used_mb()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], used_mb())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def provider_facts(provider: Provider) -> dict[str, Any]:
    """Return the provider, and the facts of its GPU, as a result holds them."""
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
