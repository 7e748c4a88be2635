"""Fidelity of the bundled pair, which is trained: log-ratios of a form on the device against fp64."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.peers.contender import SequenceLogprobs
from benchmarks.peers.stepscore_pair import LoadedPair
from benchmarks.support.forms import BF16, LOSSLESS
from benchmarks.support.gpu_bench import Bench
from benchmarks.support.gpu_plan import FP32_GRAPHS, GPU_FORMS, IN_16_BITS, IN_FP32, TRANSFORMERS
from benchmarks.support.rates import ratio_error

from stepscore.artifact.manifest import Manifest
from stepscore.artifact.pair import Pair
from stepscore.engine.base import EngineOptions
from stepscore.engine.cuda.engine import CudaEngine
from stepscore.engine.cuda.hardware import Hardware, compute_type, hardware_of, host_hardware
from stepscore.engine.element_types import FLOAT, FLOAT16
from stepscore.enums import Residency
from stepscore_export.pipeline.export import export_pair
from stepscore_export.validation.texts import Texts, bundled_texts

WEIGHTS, CONFIG, TRUTH = "model.safetensors", "config.json", "truth.npz"


@dataclass(frozen=True, slots=True)
class Problems:
    """The bundled checkpoints, the token ids that are scored, and their log-probs in fp64."""

    policy: Path
    reference: Path
    ids: Sequence[np.ndarray]
    truth: Sequence[SequenceLogprobs]


def fidelity(bench: Bench, subject: str) -> dict[str, Any]:
    """Return relative RMS errors of the log-ratio: of a form by type of logits, or of transformers by type.

    A lossless pair is made of the checkpoints rounded to bf16, and its error is that against these in fp64;
    `equal_to_bf16` says whether its log-probs are those of a bf16 pair of the same checkpoints, bit for bit.
    """
    problems = _problems(bench, in_bf16=subject == LOSSLESS)
    errors = (
        _by_transformers(bench, problems) if subject == TRANSFORMERS else _by_form(bench, problems, subject)
    )
    return {"problems": len(problems.ids), "tokens": sum(map(len, problems.ids)), **errors}


def _by_form(bench: Bench, problems: Problems, form: str) -> dict[str, Any]:
    pair = _exported(bench, problems, form)
    scored = {
        name: _scored(bench, pair, hardware, problems) for name, hardware in _logits(bench, pair.manifest)
    }
    row: dict[str, Any] = {"log_ratio_error": _errors(scored, problems)}
    if form == LOSSLESS:
        plain = _exported(bench, problems, BF16)
        expected = {
            name: _scored(bench, plain, each, problems) for name, each in _logits(bench, plain.manifest)
        }
        row["equal_to_bf16"] = all(
            np.array_equal(one, other)
            for name, of_name in scored.items()
            for pairs in zip(of_name, expected[name], strict=True)
            for one, other in zip(*pairs, strict=True)
        )
    return row


def _by_transformers(bench: Bench, problems: Problems) -> dict[str, Any]:
    import torch  # noqa: PLC0415
    from benchmarks.peers.transformers_gpu import by_torch  # noqa: PLC0415
    from transformers import Qwen2ForCausalLM  # noqa: PLC0415

    scored = {}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        models = [
            Qwen2ForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(bench.device.value)
            for folder in (problems.policy, problems.reference)
        ]
        scored[name] = by_torch(models, problems.ids, 1)
    return {"log_ratio_error": _errors(scored, problems)}


def _logits(bench: Bench, manifest: Manifest) -> Iterator[tuple[str, Hardware]]:
    """Yield the hardware with logits of either type; the CPU has no kernels for bf16."""
    if bench.on_gpu:
        has_tf32 = hardware_of(bench.device, manifest).fp32_logits
        for name, in_fp32 in ((IN_16_BITS, False), (IN_FP32, True))[: 1 + has_tf32]:
            yield name, replace(hardware_of(bench.device, manifest), fp32_logits=in_fp32)
    elif compute_type(manifest) == FLOAT16:
        yield IN_16_BITS, host_hardware(FLOAT16)
        yield IN_FP32, host_hardware(FLOAT16, fp32_logits=True)
    else:
        yield FP32_GRAPHS, host_hardware(FLOAT)


def _scored(bench: Bench, pair: Pair, hardware: Hardware, problems: Problems) -> list[SequenceLogprobs]:
    settings = bench.settings(pair.manifest, Residency.RESIDENT)
    engine = CudaEngine(pair, EngineOptions(bench.device, head_rows=settings.head_rows), hardware)
    try:
        return LoadedPair(engine, settings).logprobs(problems.ids)
    finally:
        engine.close()


def _errors(scored: dict[str, list[SequenceLogprobs]], problems: Problems) -> dict[str, float]:
    return {name: float(f"{ratio_error(each, problems.truth):.3g}") for name, each in scored.items()}


def _exported(bench: Bench, problems: Problems, form: str) -> Pair:
    text = Texts(None, bundled_texts().records[:1])  # this measures fidelity itself, on more text
    output = bench.scratch / f"bundled-{form.replace(' ', '-')}"
    return export_pair(problems.policy, problems.reference, output, GPU_FORMS[form], texts=text, force=True)


def _problems(bench: Bench, *, in_bf16: bool) -> Problems:
    """Return what is scored; fp64 is computed once a run."""
    from parity_tests.support.bundled_pair import EXAMPLE, PROBLEMS  # noqa: PLC0415
    from parity_tests.support.bundled_pair import Problems as Read  # noqa: PLC0415
    from parity_tests.support.fp64_reference import Numerics, pair_logprobs  # noqa: PLC0415
    from parity_tests.support.random_pairs import Models  # noqa: PLC0415

    folder = bench.scratch / ("checkpoints-bf16" if in_bf16 else "checkpoints")
    models = Models(folder / "policy", folder / "reference")
    if not (folder / TRUTH).exists():
        shutil.rmtree(folder, ignore_errors=True)
        EXAMPLE.write(folder)
        if in_bf16:
            _round_to_bf16(models.policy)
            _round_to_bf16(models.reference)
    read = Read.read(PROBLEMS, models, bench.sizes.fidelity_problems)
    if not (folder / TRUTH).exists():
        truth = pair_logprobs(models.policy, models.reference, read.ids, Numerics.FP64)
        np.savez(folder / TRUTH, *(each for both in truth for each in both))
    with np.load(folder / TRUTH) as arrays:
        values = [arrays[f"arr_{index}"] for index in range(len(arrays.files))]
    return Problems(
        models.policy, models.reference, read.ids, list(zip(values[::2], values[1::2], strict=True))
    )


def _round_to_bf16(folder: Path) -> None:
    import torch  # noqa: PLC0415
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    weights = {name: each.to(torch.bfloat16) for name, each in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"dtype": "bfloat16"}))
