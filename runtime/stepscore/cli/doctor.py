"""The command `stepscore doctor`: packages, CPU, memory, execution providers, and a pair."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stepscore.engine import engine_of
from stepscore.enums import Provider, Target
from stepscore.errors import ProviderUnavailable, StepscoreError
from stepscore.system import available_bytes, available_cores

if TYPE_CHECKING:
    from stepscore.artifact.pair import Pair
    from stepscore.cli.results import Check, DoctorResult

PACKAGES = (
    *("stepscore", "numpy", "tokenizers", "msgspec", "onnxruntime", "onnxruntime-gpu"),
    *("torch", "transformers", "accelerate", "bitsandbytes"),
)
PROVIDERS = ("cpu", "cuda")
CPU_FEATURES = (
    *("avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, with the error found there, if any."""

    name: str
    value: str
    fault: StepscoreError | None = None

    def as_check(self) -> Check:
        """Return the check as a result has it."""
        from stepscore.cli.results import Check, Fault

        error = None if self.fault is None else Fault.of(self.fault)
        return Check(name=self.name, works=error is None, value=self.value, error=error)


def run_doctor(pair: Path | None, *, as_json: bool) -> int:
    """Print what `doctor` finds; return the exit code."""
    from stepscore.cli.json_mode import print_result
    from stepscore.cli.tables import console, print_facts

    found = examine(pair)
    if as_json:
        print_result(found)
    else:
        print_facts(console(sys.stdout), _facts(found))
    return 0 if found.works else ProviderUnavailable.exit_code


def examine(pair: Path | None) -> DoctorResult:
    """Return what was found, and whether scoring works here: with any provider, or with this pair."""
    from stepscore.cli.results import DoctorResult

    providers = {name: _try_provider(name) for name in PROVIDERS}
    checks = list(providers.values())
    works = any(provider.fault is None for provider in checks)
    if pair is not None:
        opened, target = _try_pair(pair)
        works = opened.fault is None and (target is None or providers[target].fault is None)
        checks.append(opened)
    return DoctorResult(
        works=works,
        python=platform.python_version(),
        platform=platform.platform(),
        packages=installed_versions(),
        cores=available_cores(),
        cpu_features=_cpu_features(),
        available_bytes=available_bytes(),
        total_bytes=_total_bytes(),
        checks=[each.as_check() for each in checks],
    )


def _facts(found: DoctorResult) -> Iterator[tuple[str, str]]:
    yield "python", f"{found.python} on {found.platform}"
    yield "packages", ", ".join(f"{name} {version}" for name, version in found.packages.items())
    features = ", ".join(found.cpu_features) or "features unknown"
    yield "processor", f"{found.cores} cores usable; {features}"
    yield "memory", _memory(found)
    for check in found.checks:
        yield check.name, check.value
        if check.error is not None:
            yield "", check.error.message
            if check.error.hint:
                yield "", f"hint: {check.error.hint}"
    yield "verdict", "scoring works here" if found.works else "scoring does not work here"


def _try_provider(name: str) -> Finding:
    """Run a real session, opened as the engine opens one."""
    try:
        _run_tiny_model(name)
    except StepscoreError as error:
        return Finding(f"{name} provider", "does not work", error)
    except Exception as error:  # ONNX Runtime has no common class of errors
        return Finding(
            f"{name} provider", "does not work", ProviderUnavailable(str(error), hint=_missing(name))
        )
    return Finding(f"{name} provider", "works")


def _run_tiny_model(name: str) -> None:
    try:
        from stepscore.engine.ort.provider_checks import run_tiny_model
    except ModuleNotFoundError as error:
        raise ProviderUnavailable(
            f"{error.name} is not installed", hint=f"pip install 'stepscore[{name}]'"
        ) from None
    try:
        run_tiny_model(Provider(name))
    except ProviderUnavailable as error:
        raise ProviderUnavailable(error.message, hint=error.hint or _missing(name)) from None


def _missing(name: str) -> str | None:
    """Return why the CUDA provider does not start, as the dynamic loader and the driver report it."""
    if name != "cuda":
        return None
    import onnxruntime

    missing = []
    try:
        status = ctypes.CDLL("libcuda.so.1").cuInit(0)
        if status != 0:
            missing.append(f"the NVIDIA driver finds no usable GPU (cuInit returned {status})")
    except OSError:
        missing.append("no NVIDIA driver is installed (libcuda.so.1 is missing)")
    try:
        ctypes.CDLL(str(Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        # Loaded outside of ONNX Runtime the library fails in other ways that ONNX Runtime does not see.
        if "cannot open shared object file" in str(error):
            missing.append(f"{str(error).split(':')[0]} is missing: pip install 'stepscore[cuda]'")
    return "; ".join(missing) or "see ONNX Runtime's log above"


def _try_pair(path: Path) -> tuple[Finding, str | None]:
    """Return the finding of the pair, and the execution provider it was exported for, None for PyTorch."""
    from stepscore.artifact.pair import Pair

    try:
        pair = Pair.open(path)
        _check_engine(pair)
    except StepscoreError as error:
        return Finding("pair", str(path), error), None
    target = pair.manifest.target
    size = pair.num_bytes()
    runs_on = f"PyTorch ({pair.manifest.format})" if target is None else target.value
    value = f"{path}: for {runs_on}, {size / 1e6:,.1f} MB of files, sizes match the manifest"
    available = available_bytes()
    if target is not Target.CUDA and available is not None and size > available:
        value += f"; more than the {available / 1e9:.1f} GB of memory available"
    return Finding("pair", value), None if target is None else target.value


def _check_engine(pair: Pair) -> None:
    try:
        engine_of(pair.manifest).check(pair)
    except ModuleNotFoundError:
        return  # no ONNX Runtime: reported with the providers


def installed_versions() -> dict[str, str]:
    """Return the versions of those of PACKAGES that are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _cpu_features() -> list[str]:
    """Return the CPU_FEATURES that Linux reports; an empty list on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = {
        flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()
    }
    return [name for name in CPU_FEATURES if name in flags]


def _total_bytes() -> int | None:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None


def _memory(found: DoctorResult) -> str:
    total, available = found.total_bytes, found.available_bytes
    of = "" if total is None else f" of {total / 1e9:.1f} GB"
    return "unknown" if available is None else f"{available / 1e9:.1f} GB available{of}"
