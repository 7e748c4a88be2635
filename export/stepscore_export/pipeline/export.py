"""Two checkpoints -> one sealed pair: the steps of an export in the order in which they happen."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from stepscore.artifact.graph_contract import PREFIX
from stepscore.artifact.manifest import TOKENIZER, Manifest
from stepscore.artifact.pair import Pair
from stepscore.artifact.prefix import Prefix
from stepscore.batching.given_rows import GivenRows
from stepscore_export.backends.base import Progress, StoredUnit
from stepscore_export.options import Options
from stepscore_export.pipeline.manifest import manifest_of
from stepscore_export.pipeline.plan import ExportPlan, open_plan
from stepscore_export.quantization.error_propagation import NoStatistics, Statistics
from stepscore_export.reference.calibration import Calibration
from stepscore_export.reference.prefix import model_prefix
from stepscore_export.staging import Stage, check_output, stage
from stepscore_export.validation.advice import error_warning
from stepscore_export.validation.measure import measure
from stepscore_export.validation.selftest import run_selftest
from stepscore_export.validation.texts import Texts

LOGGER = logging.getLogger("stepscore")
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
    `texts`, and the base of a coded pair is calibrated (GPTQ) on the texts of `calibration`; by default both
    are texts that come with stepscore, and NO_TEXTS leaves it out. `force` replaces a pair at `output`, which
    stays intact until the new one is complete. Equal models and a large error are warned of (the logger
    "stepscore").

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
        prefix = _prefix(plan, staged, progress)
        units = _store(plan, staged, prefix, progress)
        staged.write(TOKENIZER, checkpoints["policy"].tokenizer_json().encode())
        manifest = _write_graphs(plan, units, staged)
        staged.write_manifest(manifest)
        progress("comparing the staged pair with numpy", 0)
        selftest = run_selftest(Pair.open(staged.folder), checkpoints, plan.stored)
        fidelity = measure(staged, checkpoints, plan.fidelity_data.name, plan.fidelity_data.prompts, progress)
        if fidelity is not None and (warning := error_warning(fidelity, manifest)) is not None:
            LOGGER.warning(warning)
        staged.seal(msgspec.structs.replace(manifest, selftest=selftest, fidelity=fidelity))
    return Pair.open(target)


def _prefix(plan: ExportPlan, staged: Stage, progress: Progress) -> Prefix | None:
    """Run the tokens that every record begins with through both models, and write what comes of them."""
    if not len(plan.prefix_ids):
        return None
    progress("running the prefix of the chat template in fp32", 0)
    models = {
        name: model_prefix(checkpoint, plan.stored[name], plan.prefix_ids)
        for name, checkpoint in plan.checkpoints.items()
    }
    prefix = Prefix(plan.prefix_ids, models)
    staged.write(PREFIX, prefix.encode())
    return prefix


def _store(
    plan: ExportPlan, staged: Stage, prefix: Prefix | None, progress: Progress
) -> list[StoredUnit[Any]]:
    """Write the weights of every unit; the base of a coded pair is calibrated as it is written."""
    statistics = _statistics(plan, prefix)
    units = []
    for folder, members in plan.backend.units(plan.stored).items():
        advance = partial(progress, f"storing {folder}")
        advance(0)
        units.append(plan.backend.store(staged, folder, members, statistics, advance))
    return units


def _statistics(plan: ExportPlan, prefix: Prefix | None) -> Statistics:
    if plan.calibration is None:
        return NoStatistics()
    sequences = [prompt.token_ids for prompt in plan.calibration.prompts]
    given = None if prefix is None else (GivenRows.of(prefix), prefix.models["reference"])
    block_size = plan.backend.storage.block_size
    return Calibration(plan.stored["reference"], sequences, block_size, given)


def _write_graphs(plan: ExportPlan, units: Sequence[StoredUnit[Any]], staged: Stage) -> Manifest:
    """Write the graphs of every unit, and return the manifest of all files."""
    for unit in units:
        for count, (name, model) in enumerate(plan.backend.graphs(unit), start=1):
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
        prefix_tokens=len(plan.prefix_ids),
        distance=plan.distance,
        storage=plan.backend.storage,
        units=units,
        files=staged.files,
        calibration=calibration,
    )
