"""The machine that a timing was measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from stepscore.enums import Provider
from stepscore.system import available_cores
from stepscore.tabular.table import Fact

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch")
_GPUS = Path("/proc/driver/nvidia/gpus")


class Machine(msgspec.Struct, frozen=True):
    """Facts of a machine; null where the system does not tell."""

    cpu: str | None
    cores: int
    """Cores that this process may use."""
    memory_gb: float | None
    gpu: str | None
    """The first NVIDIA GPU; null where it was not used."""
    system: str
    python: str
    packages: dict[str, str]
    """Versions of the libraries that run models, of those installed."""

    @classmethod
    def of_this(cls, provider: Provider) -> Machine:
        """Return the facts of this machine, for a timing with this execution provider."""
        return cls(
            cpu=_field(Path("/proc/cpuinfo"), "model name") or platform.processor() or None,
            cores=available_cores(),
            memory_gb=_memory_gb(),
            gpu=_gpu() if provider is Provider.CUDA else None,
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            packages=dict(_versions()),
        )

    def facts(self) -> list[Fact]:
        """Return the machine as facts of a table."""
        found = [
            Fact.of("cpu", "cpu", self.cpu),
            Fact.of("cores", "cores", self.cores),
            Fact.of("memory", "memory_gb", self.memory_gb, f"{self.memory_gb} GB"),
            Fact.of("gpu", "gpu", self.gpu),
            Fact.of("system", "system", self.system),
            Fact.of("python", "python", self.python),
            *(Fact.of(name, name, number) for name, number in self.packages.items()),
        ]
        return [fact for fact in found if fact.value is not None]


def _memory_gb() -> float | None:
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def _gpu() -> str | None:
    found = sorted(_GPUS.glob("*/information"))
    return _field(found[0], "Model:") if found else None


def _field(path: Path, name: str) -> str | None:
    """Return the value of the first line `name: value` of a file of the kernel."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
