"""Run bitsandbytes pairs, whose models are transformers folders, on PyTorch (model.py).

torch, transformers and bitsandbytes are imported when a pair is opened.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.manifest import CONFIG, ModelName
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch
from stepscore.engine.base import Engine, EngineOptions, PairLogprobs
from stepscore.engine.pytorch import loading
from stepscore.engine.pytorch.checked_config import checked_config
from stepscore.engine.pytorch.loading import Device
from stepscore.engine.pytorch.model import Model
from stepscore.engine.pytorch.structure import check_structure
from stepscore.enums import Provider
from stepscore.errors import (
    IntegrityMismatch,
    ModelInvalid,
    ProviderUnavailable,
    RunFailed,
    StepscoreError,
)
from stepscore.memory.settings import check_residency, usual_head_rows

T = TypeVar("T")

PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes")


class TorchEngine(Engine):
    """An open pair of transformers models that runs windows of batches."""

    def __init__(self, pair: Pair, options: EngineOptions | None = None) -> None:
        options = options or EngineOptions()
        check_residency(pair.manifest, options.residency)
        self.check(pair)
        self._device = loading.resolve(Device(options.provider.value), option="--provider")
        self.provider = Provider(self._device.value)
        self._head_rows = options.head_rows or usual_head_rows(pair.manifest)
        self._folders = [
            (unit.models[0], pair.path / unit.folder, checked_config(pair.path, pair.manifest, unit))
            for unit in pair.manifest.units
        ]
        for _, folder, config in self._folders:
            with _faults_as(ModelInvalid, f"PyTorch cannot load {folder.name}"):
                check_structure(f"{folder.name}/{CONFIG}", config, pair.manifest.architecture)
        _limit(self._device, options)
        self._kept: list[tuple[ModelName, Model]] = []
        if options.by_batch:
            self._kept = [(name, self._load(folder, config)) for name, folder, config in self._folders]

    @classmethod
    def check(cls, pair: Pair) -> None:
        """Raise ProviderUnavailable unless torch, transformers and bitsandbytes are installed and work.

        Raises IntegrityMismatch for a file that the manifest does not list: transformers might read it.
        Raises ModelInvalid for a configuration that no export writes.
        """
        require_packages()
        for unit in pair.manifest.units:
            checked_config(pair.path, pair.manifest, unit)
            for path in sorted((pair.path / unit.folder).iterdir()):
                name = path.relative_to(pair.path).as_posix()
                if name not in pair.manifest.files:
                    raise IntegrityMismatch(
                        f"{name} is not in the manifest, and transformers might read it", hint="remove it"
                    )

    def run(self, batches: Sequence[Batch]) -> Generator[PairLogprobs]:
        """Yield the log-probs of each batch's targets, by model; if resident, as soon as it is computed."""
        windows = [[batch] for batch in batches] if self._kept else [batches]
        for window in windows:
            of_models = self._results(Model.logprobs, window)
            for index in range(len(window)):
                yield {name: results[index] for name, results in of_models.items()}

    def trace(self, batch: Batch) -> tuple[dict[ModelName, NDArray[np.floating]], PairLogprobs]:
        """Return the final hidden states [m, hidden_size], the head's input, by model, and the log-probs."""
        of_models = self._results(Model.trace, [batch])
        hidden: dict[ModelName, NDArray[np.floating]] = {name: each[0][0] for name, each in of_models.items()}
        return hidden, {name: each[0][1] for name, each in of_models.items()}

    def close(self) -> None:
        """Release the models and their memory."""
        self._kept.clear()
        _collect(self._device)

    def _results(
        self, of: Callable[[Model, Batch, int], T], window: Sequence[Batch]
    ) -> dict[ModelName, list[T]]:
        """Run both models: those kept in memory, or one after the other."""
        if self._kept:
            return {name: self._run(of, model, window) for name, model in self._kept}
        results = {}
        for name, folder, config in self._folders:
            results[name] = self._run(of, self._load(folder, config), window)
            _collect(self._device)
        return results

    def _run(self, of: Callable[[Model, Batch, int], T], model: Model, window: Sequence[Batch]) -> list[T]:
        with (
            loading.memory_errors(self._device, "lower --max-batch-tokens"),
            _faults_as(RunFailed, "PyTorch cannot run a model"),
        ):
            return [of(model, batch, self._head_rows) for batch in window]

    def _load(self, folder: Path, config: Mapping[str, Any]) -> Model:
        with (
            loading.memory_errors(self._device, "use --residency alternate, which holds one model at a time"),
            _faults_as(ModelInvalid, f"PyTorch cannot load {folder.name}"),
        ):
            return Model(folder, self._device, config)


@contextmanager
def _faults_as(kind: type[StepscoreError], what: str) -> Iterator[None]:
    """Raise `kind` for what PyTorch, transformers and bitsandbytes raise: they have no common class."""
    import torch

    try:
        yield
    except (StepscoreError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise kind(
            f"{what}: {type(error).__name__}: {said[:300]}",
            hint="run `stepscore verify PAIR`; if the files are intact, export the pair again",
        ) from error


def require_packages() -> None:
    """Raise ProviderUnavailable unless the packages that quantize and run these models work."""
    loading.require(*PACKAGES[:-1])
    with _nothing_downloaded():
        loading.require(PACKAGES[-1])
        _check_kernels()


def _check_kernels() -> None:
    """Raise ProviderUnavailable where a round trip fails: bitsandbytes before 0.49 has no CPU kernels."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    ones = torch.ones(1, 64)
    try:
        values = dequantize_4bit(*quantize_4bit(ones, blocksize=64, quant_type="nf4"))
        fault = None if torch.equal(values, ones) else "dequantizing a quantized 1 gives another value"
    except Exception as error:  # bitsandbytes and PyTorch have no common class of errors
        fault = str(error)
    if fault is not None:
        raise ProviderUnavailable(
            f"bitsandbytes {version('bitsandbytes')} does not work here: {fault}",
            hint="pip install --upgrade 'stepscore[torch]'",
        )


def _limit(device: Device, options: EngineOptions) -> None:
    """Set PyTorch's process-wide limits: threads, and the fraction of the GPU's memory."""
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if device is Device.CUDA and options.gpu_mem_limit is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.gpu_mem_limit / total))


def _collect(device: Device) -> None:
    import torch

    gc.collect()  # a module and its forward function reference each other
    if device is Device.CUDA:
        torch.cuda.empty_cache()


@contextmanager
def _nothing_downloaded() -> Iterator[None]:
    """Prevent downloads while bitsandbytes is imported.

    With the package `kernels` installed, the import would download native code from a model hub, so it is
    hidden; bitsandbytes' warning that it is missing is silenced.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if "bitsandbytes" in sys.modules:
        yield
        return
    known = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["kernels"]
        if known is not None:
            sys.modules["kernels"] = known
