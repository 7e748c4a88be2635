"""Runs pairs whose models are folders of transformers, loaded into PyTorch (torch_model.py).

Found by the entry point `stepscore.engines`; torch, transformers and bitsandbytes are imported when a pair is
opened.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.manifest import ModelName
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch
from stepscore.engine.base import Engine, EngineOptions, PairLogprobs
from stepscore.engine.pytorch import loading
from stepscore.engine.pytorch.loading import Device
from stepscore.engine.pytorch.model import Model
from stepscore.enums import Provider
from stepscore.errors import IntegrityMismatch, ProviderUnavailable
from stepscore.memory.estimate import check_residency
from stepscore.memory.settings import usual_head_rows

T = TypeVar("T")

PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes")


class TorchEngine(Engine):
    """An open pair of transformers' models, ready to run windows of batches."""

    def __init__(self, pair: Pair, options: EngineOptions | None = None) -> None:
        options = options or EngineOptions()
        check_residency(pair.manifest, options.residency)
        self.check(pair)
        self._device = loading.resolve(Device(options.provider.value), option="--provider")
        self.provider = Provider(self._device.value)
        self._head_rows = options.head_rows or usual_head_rows(pair.manifest)
        self._folders = [(unit.models[0], pair.path / unit.folder) for unit in pair.manifest.units]
        _limit(self._device, options)
        self._kept: list[tuple[ModelName, Model]] = []
        if options.by_batch:
            self._kept = [(name, self._load(folder)) for name, folder in self._folders]

    @classmethod
    def check(cls, pair: Pair) -> None:
        """Raise ProviderUnavailable unless torch, transformers and bitsandbytes are here, and work.

        Transformers reads what it finds, so a file beside those of the manifest is an IntegrityMismatch.
        """
        require_packages()
        for unit in pair.manifest.units:
            for path in sorted((pair.path / unit.folder).iterdir()):
                name = path.relative_to(pair.path).as_posix()
                if name not in pair.manifest.files:
                    raise IntegrityMismatch(
                        f"{name} is not in the manifest, and transformers might read it", hint="remove it"
                    )

    def run(self, batches: Sequence[Batch]) -> Iterator[PairLogprobs]:
        """Give the log-probs of each batch's pairs, by model, in order; resident, as soon as it is done."""
        windows = [[batch] for batch in batches] if self._kept else [batches]
        for window in windows:
            of_models = self._results(Model.logprobs, window)
            for index in range(len(window)):
                yield {name: results[index] for name, results in of_models.items()}

    def trace(self, batch: Batch) -> tuple[dict[ModelName, NDArray[np.floating]], PairLogprobs]:
        """Return the hidden rows [m, hidden_size] that the head reads as well, by model."""
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
        """Run both models: those that are kept, or one after the other, never two in memory."""
        if self._kept:
            return {name: self._run(of, model, window) for name, model in self._kept}
        results = {}
        for name, folder in self._folders:
            results[name] = self._run(of, self._load(folder), window)
            _collect(self._device)
        return results

    def _run(self, of: Callable[[Model, Batch, int], T], model: Model, window: Sequence[Batch]) -> list[T]:
        with loading.memory_errors(self._device, "take a smaller --max-batch-tokens"):
            return [of(model, batch, self._head_rows) for batch in window]

    def _load(self, folder: Path) -> Model:
        with loading.memory_errors(self._device, "--residency alternate holds one model at a time"):
            return Model(folder, self._device)


def require_packages() -> None:
    """Raise ProviderUnavailable unless what quantises and runs these models is installed, and works."""
    loading.require(*PACKAGES[:-1])
    with _nothing_downloaded():
        loading.require(PACKAGES[-1])
        _check_kernels()


def _check_kernels() -> None:
    """Releases before 0.49 have none for the CPU; others may be broken."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    ones = torch.ones(1, 64)
    try:
        values = dequantize_4bit(*quantize_4bit(ones, blocksize=64, quant_type="nf4"))
        fault = None if torch.equal(values, ones) else "1 came back as something else"
    except Exception as error:  # bitsandbytes and PyTorch raise their own, unrelated classes
        fault = str(error)
    if fault is not None:
        raise ProviderUnavailable(
            f"bitsandbytes {version('bitsandbytes')} does not work here: {fault}",
            hint="pip install --upgrade 'stepscore[torch]'",
        )


def _limit(device: Device, options: EngineOptions) -> None:
    """Set what PyTorch has for a whole process: threads, and the share of a GPU's memory."""
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if device is Device.CUDA and options.gpu_mem_limit is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.gpu_mem_limit / total))


def _collect(device: Device) -> None:
    import torch

    gc.collect()  # a module and its product refer to each other
    if device is Device.CUDA:
        torch.cuda.empty_cache()


@contextmanager
def _nothing_downloaded() -> Iterator[None]:
    """Import bitsandbytes as it is installed.

    Where the package `kernels` is there as well, importing it would fetch native code from a model hub; for
    us there is none. That it then misses this code is no news to a user.
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
