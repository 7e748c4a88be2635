"""Compute what a pair of two 7.6B models would hold on a GPU, and how fast each kind of card would score it.

    python -m benchmarks.gpu_estimates       no GPU needed: this is the arithmetic of stepscore/memory

It writes results/gpu_estimates.json. Sizes are those of the layout that an export would write; no weight is
read. The lossless pair takes as many bits for a weight as the close real pair does (its result file says so).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from benchmarks.support.forms import FORMS, LOSSLESS, LOSSLESS_OPTIONS
from benchmarks.support.hollow import write_hollow_checkpoint
from benchmarks.support.options import benchmark_parser
from benchmarks.support.results import RESULTS, read_results, write_result
from benchmarks.support.shapes import QWEN_7B

from stepscore.artifact.manifest import Distance, Extent, Manifest, Unit
from stepscore.enums import Coding, Precision, Provider, Residency, Target
from stepscore.memory.cards import Expectation, expectations, rounded
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.gpu import stage_sizes
from stepscore_export.backends.base import StoredUnit
from stepscore_export.backends.cuda import CudaBackend
from stepscore_export.checkpoint.chat_template import prompt_template
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.weight_source import Members
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.manifest import manifest_of
from stepscore_export.quantization.error_propagation import NoStatistics
from stepscore_export.weights.weight_file import SizeOnly

CLOSE_PAIR = "checkpoint_fidelity_policy_fifth"
BATCHES = (8192, 4096, 2048)
SIZED: Mapping[str, ExportOptions] = {
    **FORMS[Provider.CUDA],
    "int4 + int4": ExportOptions(Precision.INT4, Target.CUDA, coding=Coding.DIFFERENCE),
    "int4 + int4, blocks of 64": ExportOptions(
        Precision.INT4, Target.CUDA, coding=Coding.DIFFERENCE, block_size=64
    ),
}
"""Forms by name; the lossless one has its size from a real pair."""


def sized(checkpoints: Members, options: ExportOptions) -> Manifest:
    """Return the manifest of a pair that is not written: the extents are those of its layout."""
    distance = Distance(0.005, {})
    backend = CudaBackend(options).resolve(distance, calibrated=False)
    units = []
    for folder, members in backend.units(checkpoints).items():
        weights = backend.write_unit(members, SizeOnly(), NoStatistics(), lambda _count: None)
        units.append(StoredUnit(folder, members, weights, weights.extents()))
    return manifest_of(
        checkpoints,
        template=prompt_template(checkpoints["policy"])[0],
        prefix_tokens=0,
        distance=distance,
        storage=backend.storage,
        units=units,
        files={},
    )


def lossless(manifest: Manifest, bits: float) -> Manifest:
    """Return a lossless pair with so many bits for a weight of the policy beside the reference's 16."""

    def shrunk(unit: Unit) -> Unit:
        extents = {
            name: Extent(each.offset, round(each.size * (16 + bits) / 32))
            for name, each in unit.extents.items()
        }
        return msgspec.structs.replace(unit, extents=extents)

    return msgspec.structs.replace(manifest, units=tuple(map(shrunk, manifest.units)))


def row(form: str, manifest: Manifest) -> dict[str, Any]:
    """Return gigabytes by residency and batch, and the expectation for every card."""
    gigabytes = {
        residency.value: {
            str(tokens): round(
                estimate(manifest, fit_settings(manifest, residency=residency, max_batch_tokens=tokens)).total
                / 1e9,
                2,
            )
            for tokens in BATCHES
        }
        for residency in (Residency.RESIDENT, Residency.STREAM)
    }
    cards = {each.card.name: expected(manifest, each) for each in expectations(manifest)}
    return {"form": form, "gigabytes": gigabytes, "cards": cards}


def expected(manifest: Manifest, found: Expectation) -> dict[str, Any] | None:
    """Return the expectation for one card; None where the pair does not run there."""
    settings = found.settings
    if settings is None:
        return None
    return {
        "residency": settings.residency.value,
        "resident_stages": settings.resident_stages,
        "stages": len(stage_sizes(manifest)),
        "max_batch_tokens": settings.max_batch_tokens,
        "gigabytes": round(found.num_bytes / 1e9, 1),
        "tokens_per_second": rounded(found.tokens_per_second),
    }


def main() -> None:
    """Write results/gpu_estimates.json."""
    options = benchmark_parser(__doc__).parse_args()
    real = read_results(RESULTS).get(CLOSE_PAIR, {"rows": []})["rows"]
    bits = next((each["policy_bits"] for each in real if "policy_bits" in each), None)
    rows = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        paths = [write_hollow_checkpoint(Path(folder) / name, QWEN_7B) for name in ("policy", "reference")]
        with Checkpoint.open(paths[0]) as policy, Checkpoint.open(paths[1]) as reference:
            checkpoints: Members = {"policy": policy, "reference": reference}
            rows += [row(form, sized(checkpoints, each)) for form, each in SIZED.items()]
            if bits is not None:
                rows.append(row(LOSSLESS, lossless(sized(checkpoints, LOSSLESS_OPTIONS), bits)))
    result = {"shape": msgspec.to_builtins(QWEN_7B), "policy_bits": bits, "rows": rows}
    print(write_result("gpu_estimates", result, quick=options.quick))


if __name__ == "__main__":
    main()
