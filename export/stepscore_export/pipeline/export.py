"""Two checkpoints -> one sealed pair: the steps of an export in the order in which they happen."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from stepscore.artifact.manifest import TOKENIZER, Manifest
from stepscore.artifact.pair import Pair
from stepscore_export.backends.base import Backend, Progress, StoredUnit
from stepscore_export.options import Options
from stepscore_export.pipeline.manifest import manifest_of
from stepscore_export.pipeline.plan import ExportPlan, open_plan
from stepscore_export.quantization.error_propagation import NoStatistics, Statistics
from stepscore_export.reference.calibration import Calibration
from stepscore_export.staging import Stage, check_output, stage
from stepscore_export.validation.measure import measure
from stepscore_export.validation.selftest import run_selftest
from stepscore_export.validation.texts import Texts

GRAPHS_PER_COLLECTION = 16
"""Graphs hold reference cycles: gc.collect() frees them, but takes too long to run after each."""


def _no_progress(_what: str, _parameters: int) -> None:
    pass


def export_pair(
    policy: str | Path,
    reference: str | Path,
    output: str | Path,
    options: Options | None = None,
    *,
    texts: Texts | None = None,
    calibration: Texts | None = None,
    force: bool = False,
    progress: Progress = _no_progress,
) -> Pair:
    """Write the pair of `policy` and `reference` to the folder `output` and return it, opened.

    Both are Hugging Face folders or `id@revision`. The options name the backend: ExportOptions (the default)
    write ONNX graphs, BitsandbytesOptions the weights of bitsandbytes. The pair's fidelity is measured on
    `texts`, by default on those that come with stepscore; with `calibration` the base of a coded pair is
    calibrated on these texts (GPTQ). `force` replaces a pair at `output`, which stays intact until the new
    one is complete.

    Raises ExportError, OutputError, PairIncompatible, NotFound or ProviderUnavailable and leaves nothing
    behind.
    """
    check_output(Path(output), force=force)
    with open_plan(policy, reference, options, texts=texts, calibration=calibration) as plan:
        return write_pair(plan, output, force=force, progress=progress)


def write_pair(
    plan: ExportPlan, output: str | Path, *, force: bool = False, progress: Progress = _no_progress
) -> Pair:
    """Store, check, measure and seal the pair of an open plan in the folder `output`; see `export_pair`."""
    target, backend, checkpoints = Path(output), plan.backend, plan.checkpoints
    backend.prepare(checkpoints, progress)
    with stage(target, force=force) as staged:
        units = _store(plan, staged, progress)
        staged.write(TOKENIZER, checkpoints["policy"].tokenizer_json().encode())
        runnable = backend.runnable_here()
        manifest = _write_graphs(plan, runnable, units, staged)
        staged.write_manifest(manifest)
        progress("comparing the staged pair with numpy", 0)
        selftest = run_selftest(Pair.open(staged.folder), checkpoints)
        fidelity = measure(staged, checkpoints, plan.fidelity_data.name, plan.fidelity_data.prompts, progress)
        if runnable is not backend:
            manifest = _write_graphs(plan, backend, units, staged)
        staged.seal(msgspec.structs.replace(manifest, selftest=selftest, fidelity=fidelity))
    return Pair.open(target)


def _store(plan: ExportPlan, staged: Stage, progress: Progress) -> list[StoredUnit[Any]]:
    """Write the weights of every unit; the base of a coded pair is calibrated as it is written."""
    statistics = _statistics(plan, staged.folder)
    units = []
    for folder, members in plan.backend.units(plan.checkpoints).items():
        advance = partial(progress, f"storing {folder}")
        advance(0)
        units.append(plan.backend.store(staged, folder, members, statistics, advance))
    return units


def _statistics(plan: ExportPlan, scratch: Path) -> Statistics:
    if plan.calibration is None or not plan.calibration.prompts:
        return NoStatistics()
    sequences = [prompt.token_ids for prompt in plan.calibration.prompts]
    return Calibration(plan.checkpoints["reference"], sequences, scratch, plan.backend.storage.block_size)


def _write_graphs(
    plan: ExportPlan, backend: Backend[Any], units: Sequence[StoredUnit[Any]], staged: Stage
) -> Manifest:
    """Write the graphs of every unit as the backend has them, and return the manifest of all files."""
    for unit in units:
        for count, (name, model) in enumerate(backend.graphs(unit), start=1):
            proto = ir.to_proto(model).SerializeToString(deterministic=True)
            staged.write(f"{unit.folder}/{name}", proto)
            del model, proto
            if count % GRAPHS_PER_COLLECTION == 0:
                gc.collect()
    gc.collect()
    calibration = None if plan.calibration is None else plan.calibration.name
    return manifest_of(
        plan.checkpoints,
        template=plan.template,
        distance=plan.distance,
        storage=backend.storage,
        units=units,
        files=staged.files,
        calibration=calibration,
    )
