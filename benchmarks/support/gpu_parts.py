"""Parts of the GPU benchmark, each measured in a process of its own: a part's arguments in, its row out."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.peers.contender import SequenceLogprobs, Tokens
from benchmarks.peers.stepscore_pair import LoadedPair
from benchmarks.peers.transformers_gpu import DEVICE, by_torch, random_model
from benchmarks.support.cublas_floor import measure_floor
from benchmarks.support.forms import CODED, FORMS, FP16
from benchmarks.support.hollow import write_hollow_pair
from benchmarks.support.machine import gpu_peak_mb
from benchmarks.support.profiles import after_first_run, of_stages, profiled
from benchmarks.support.rates import ratio_error, rounded
from benchmarks.support.workloads import best_of_8
from testing.shared_data import SHARED_DATA

from stepscore.artifact.pair import Pair
from stepscore.bench import rate
from stepscore.engine.base import EngineOptions
from stepscore.engine.ort.engine import OrtEngine
from stepscore.enums import Products, Provider, Residency
from stepscore.memory.fit import fit_settings
from stepscore.memory.settings import CUDA_BATCH_TOKENS, Settings
from stepscore_export.families.base import DecoderConfig
from stepscore_export.pipeline.export import export_pair
from stepscore_export.validation.texts import Texts, bundled_texts

SEPARATE = "int8 + int4, separate products"
ON_CUDA = FORMS[Provider.CUDA]
MEASURED = {**ON_CUDA, SEPARATE: replace(ON_CUDA[CODED], products=Products.SEPARATE)}
MAIN_FORMS = (FP16, CODED)
WINDOWS = (1024, 2048, 4096, 8192, 16_384, 32_768)
FEW_WINDOWS = (4096, 16_384, 32_768)
"""Windows of the other forms, and of residencies that read all weights once per window."""
BATCHES = (2048, 16_384)
SEQUENCE_TOKENS = 512
PROBLEMS = 6
EXAMPLE_PROBLEMS = 60
REPEATS = 3
PROFILED_LAYERS = 2
LARGEST_OPERATORS = 12
SHAPE = "shape.json"
"""File of the scratch folder that holds the shape to measure."""


def floor(scratch: Path) -> dict[str, Any]:
    """Measure the floor of the shape."""
    return measure_floor(_shape(scratch))


def fidelity(scratch: Path, *forms: str) -> dict[str, Any]:
    """Score problems with the bundled pair: every form, and PyTorch in 16 bits, against fp64."""
    import torch  # noqa: PLC0415
    from parity_tests.support.bundled_pair import EXAMPLE, Problems  # noqa: PLC0415
    from parity_tests.support.bundled_pair import PROBLEMS as PROBLEMS_FILE  # noqa: PLC0415
    from parity_tests.support.fp64_reference import Numerics, pair_logprobs  # noqa: PLC0415
    from transformers import Qwen2ForCausalLM  # noqa: PLC0415

    models = EXAMPLE.write(scratch / "example")
    problems = Problems.read(PROBLEMS_FILE, models, EXAMPLE_PROBLEMS)
    truth = pair_logprobs(models.policy, models.reference, problems.ids, Numerics.FP64)
    errors: dict[str, float] = {}
    text = Texts(None, bundled_texts().records[:1])  # this part measures fidelity itself, on more text
    for form in forms:
        pair = export_pair(
            models.policy, models.reference, scratch / "example-pair", MEASURED[form], texts=text, force=True
        )
        engine = OrtEngine(pair)
        errors[form] = ratio_error(_scored(engine, problems.ids, fit_settings(pair.manifest)), truth)
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        loaded = [
            Qwen2ForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(DEVICE)
            for folder in (models.policy, models.reference)
        ]
        errors[f"transformers {name}"] = ratio_error(by_torch(loaded, problems.ids, 1), truth)
    return {
        "problems": len(problems.ids),
        "tokens": sum(map(len, problems.ids)),
        "log_ratio_error": {name: float(f"{error:.3g}") for name, error in errors.items()},
    }


def pair(scratch: Path, form: str, residency: str) -> dict[str, Any]:
    """Measure a hollow pair: memory, and tokens/s by window, on text and by batch size."""
    folder = scratch / form.replace(" ", "-")
    if not (folder / "pair").is_dir():
        write_hollow_pair(folder, _shape(scratch), MEASURED[form])
    row: dict[str, Any] = {"form": form, "residency": residency}
    with gpu_peak_mb() as peak:
        opened = Pair.open(folder / "pair")
        settings = fit_settings(opened.manifest, residency=Residency(residency))
        vocabulary = opened.manifest.architecture.vocab_size
        started = time.perf_counter()
        engine = OrtEngine(opened, EngineOptions(residency=settings.residency, head_rows=settings.head_rows))
        _scored(engine, _random(vocabulary, 1), settings)
        row["load_and_first_seconds"] = round(time.perf_counter() - started, 2)
        row["loaded_mb"] = peak[0]
        resident = settings.residency is Residency.RESIDENT
        in_full, repeats = resident and form in MAIN_FORMS, REPEATS if resident else 1
        row["windows"] = [
            _timed(engine, _random(vocabulary, tokens // SEQUENCE_TOKENS), settings, repeats)
            | {"peak_mb": peak[0]}
            for tokens in (WINDOWS if in_full else FEW_WINDOWS)
        ]
        if resident:
            text = _text(scratch, opened)
            row["text"] = _timed(engine, text, settings, repeats)
        if in_full:
            row["text_not_shared"] = _timed(engine, text, settings, repeats, share=False)
            row["batches"] = [
                {"max_batch_tokens": tokens}
                | _timed(engine, _random(vocabulary, 32), replace(settings, max_batch_tokens=tokens), repeats)
                for tokens in BATCHES
            ]
    return row | {"peak_mb": peak[0]}


def peer(scratch: Path, precision: str) -> dict[str, Any]:
    """Measure PyTorch as the model card runs it, or with bitsandbytes' linear layers."""
    row: dict[str, Any] = {"peer": f"transformers {precision}"}
    folder = next(scratch.glob("*/policy"))
    text = _text(scratch, Pair.open(folder.parent / "pair"))
    with gpu_peak_mb() as peak:
        models = [random_model(folder, precision) for _ in range(2)]
        row["loaded_mb"] = peak[0]
        row["text"] = _repeated(lambda: by_torch(models, text, 1), text)
        row["text_batches_of_8"] = _repeated(lambda: by_torch(models, text, 8), text)
    return row | {"peak_mb": peak[0]}


def profile(scratch: Path, form: str) -> dict[str, Any]:
    """Measure milliseconds by operator: two layers and the head, one large batch.

    CUDA_LAUNCH_BLOCKING, set for this part, has every kernel waited for, so that ONNX Runtime's profile shows
    GPU time.
    """
    shape = replace(_shape(scratch), num_hidden_layers=PROFILED_LAYERS)
    folder = scratch / f"profile-{form.replace(' ', '-')}"
    opened = Pair.open(write_hollow_pair(folder, shape, MEASURED[form]))
    settings = fit_settings(opened.manifest)
    with profiled(folder) as kernels:
        engine = OrtEngine(opened, EngineOptions(head_rows=settings.head_rows))
        for _ in range(2):
            _scored(engine, _random(shape.vocab_size, CUDA_BATCH_TOKENS // SEQUENCE_TOKENS), settings)
    row: dict[str, Any] = {"form": form, "layers": PROFILED_LAYERS, "rows": CUDA_BATCH_TOKENS}
    for stage in dict.fromkeys(kernel.stage for kernel in kernels):
        spent: Counter[str] = Counter()
        for kernel in after_first_run(of_stages(kernels, stage), 2):
            spent[kernel.operator] += kernel.microseconds
        largest = spent.most_common(LARGEST_OPERATORS)
        row[stage] = {operator: round(micros / 1e3, 3) for operator, micros in largest}
    return row


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "floor": floor,
    "fidelity": fidelity,
    "pair": pair,
    "profile": profile,
    "peer": peer,
}


def _timed(
    engine: OrtEngine, sequences: Sequence[Tokens], settings: Settings, repeats: int, *, share: bool = True
) -> dict[str, Any]:
    return _repeated(lambda: _scored(engine, sequences, settings, share=share), sequences, repeats)


def _repeated(
    score: Callable[[], object], sequences: Sequence[Tokens], repeats: int = REPEATS
) -> dict[str, Any]:
    """Time `repeats` passes after one to warm up."""
    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        score()
        seconds.append(time.perf_counter() - started)
    tokens = sum(map(len, sequences))
    return {"sequences": len(sequences), "tokens": tokens, **rounded(rate(tokens, seconds[1:]))}


def _scored(
    engine: OrtEngine, sequences: Sequence[Tokens], settings: Settings, *, share: bool = True
) -> list[SequenceLogprobs]:
    """Score sequences as one window, planning included."""
    return LoadedPair(engine, settings, share).window(sequences)


def _random(vocabulary: int, count: int) -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocabulary, SEQUENCE_TOKENS) for _ in range(count)]


def _text(scratch: Path, opened: Pair) -> list[Tokens]:
    """Return the sample of best-of-8 solutions, chosen once; random ids without the shared data."""
    path = scratch / "text.npz"
    if SHARED_DATA is None:
        return _random(opened.manifest.architecture.vocab_size, 8 * PROBLEMS)
    if not path.exists():
        np.savez(path, *best_of_8(opened.encoder(), PROBLEMS).sequences)
    with np.load(path) as arrays:
        return [arrays[f"arr_{index}"] for index in range(len(arrays.files))]


def _shape(scratch: Path) -> DecoderConfig:
    return DecoderConfig(**json.loads((scratch / SHAPE).read_text()))
