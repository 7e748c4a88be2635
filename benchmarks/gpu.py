"""A GPU: tokens a second and device memory of each form and residency, beside the floor and what people use.

    make bench-gpu                       Qwen2.5-7B shape, 28 layers, about 6 minutes on one H200
    make bench-gpu FLAGS="--only floor ours --forms fp16"
    make bench-gpu FLAGS=--quick         a tiny model: does it all work

Pairs are hollow (hollow.py): the work and the memory are real, weights and rewards are not. `windows` are
sequences of 512 random ids that share nothing, so that rows are tokens and a speed can be held against the
floor: the same matrix products by cuBLAS, of as many rows, one after the other and nothing else. `text` is a
sample of best-of-8 solutions, the same token ids for everybody, tokens a second of input tokens. PyTorch has
random weights of its own; of bitsandbytes one layer is made and run as often as there are layers.

`fidelity` is another part: the bundled pair, which is trained, on its problems, by every form and by PyTorch
on the GPU, against fp64: relative RMS errors of the log-ratio.

Each part is a process of its own. Device memory is the driver's figure, less what was used before, sampled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks.peers.contender import PairLogprobs, Tokens
from benchmarks.peers.ours import LoadedPair
from benchmarks.peers.transformers_gpu import DEVICE, by_torch, random_model
from benchmarks.support.forms import CODED, FORMS, FP16
from benchmarks.support.hollow import write_hollow_pair
from benchmarks.support.machine import QUICK_RESULTS, RESULTS, gpu_facts, gpu_peak_mb, write_result
from benchmarks.support.rates import ratio_error, rounded
from benchmarks.support.shapes import QUICK, QWEN_7B
from benchmarks.support.workloads import best_of_8
from testing.shared_data import SHARED_DATA

from stepscore.artifact.pair import Pair
from stepscore.bench import rate
from stepscore.engine.base import EngineOptions
from stepscore.engine.ort import sessions as provider
from stepscore.engine.ort.engine import OrtEngine
from stepscore.enums import Products, Provider, Residency
from stepscore.memory.fit import fit_settings
from stepscore.memory.settings import CUDA_BATCH_TOKENS, Settings
from stepscore_export.families.base import DecoderConfig
from stepscore_export.pipeline.export import export_pair
from stepscore_export.validation.texts import Texts, bundled_texts

if TYPE_CHECKING:
    import torch

SEPARATE = "int8 + int4, separate products"
ON_CUDA = FORMS[Provider.CUDA]
MEASURED = {**ON_CUDA, SEPARATE: replace(ON_CUDA[CODED], products=Products.SEPARATE)}
MAIN_FORMS = (FP16, CODED)
WINDOWS = (1024, 2048, 4096, 8192, 16_384, 32_768)
FEW_WINDOWS = (4096, 16_384, 32_768)
"""Of forms that are measured in passing, and of what reads all weights once a window."""
BATCHES = (2048, 16_384)
SEQUENCE_TOKENS = 512
FLOOR_ROWS = 16_384
HEAD_ROWS = 4096
PROBLEMS = 6
EXAMPLE_PROBLEMS = 60
REPEATS = 3


def main() -> None:
    """Run the parts; write results/gpu.json, anew after every part."""
    options = _options()
    if options.child:
        kind, *rest = options.child
        print(json.dumps(CHILDREN[kind](*rest)))
        return
    shape = QUICK if options.quick else QWEN_7B
    shape = replace(shape, num_hidden_layers=options.layers or shape.num_hidden_layers)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        (scratch / "shape.json").write_text(json.dumps(asdict(shape)))
        result: dict[str, Any] = {"quick": options.quick, "gpu": gpu_facts(), "shape": asdict(shape)}
        result["rows"] = rows = []
        where = options.results or (QUICK_RESULTS if options.quick else RESULTS)
        for part, *arguments in _parts(options):
            if time.perf_counter() - started > options.seconds:
                row = {"part": part, "arguments": arguments, "skipped": f"after {options.seconds} seconds"}
            else:
                row = {"part": part, **_child(part, scratch, *arguments)}
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
            path = write_result(options.name, result, where)
    print(path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--only", nargs="*", choices=list(CHILDREN), default=list(CHILDREN))
    parser.add_argument("--forms", nargs="*", choices=list(MEASURED), default=list(MEASURED))
    parser.add_argument("--seconds", type=float, default=3600, help="begin no part after so many")
    parser.add_argument("--scratch", type=Path, help="where pairs go, 8 GB")
    parser.add_argument("--name", default="gpu", help="of the result file")
    parser.add_argument("--results", type=Path, help="where it goes")
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def _parts(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Give the parts and their arguments, what matters most first."""
    forms = [form for form in MEASURED if form in options.forms]
    parts: list[tuple[str, ...]] = [("floor",), ("fidelity", *forms)]
    parts += [("ours", form, Residency.RESIDENT) for form in forms if form in MAIN_FORMS]
    parts += [("profile", form) for form in forms if form in MAIN_FORMS]
    parts += [("peer", "fp16"), ("ours", CODED, Residency.STREAM), ("ours", "bf16", Residency.RESIDENT)]
    parts += [("peer", "bf16"), ("ours", "fp16", Residency.STREAM), ("peer", "int8")]
    parts += [("ours", SEPARATE, Residency.RESIDENT), ("ours", "fp16", Residency.ALTERNATE), ("peer", "nf4")]
    return (
        part for part in parts if part[0] in options.only and (part[0] != "ours" or part[1] in options.forms)
    )


# The parts: each gives a row


def _floor(scratch: Path) -> dict[str, Any]:
    """Time the products of a layer and of the head by cuBLAS; tokens/s of a pair made of them alone."""
    import torch  # noqa: PLC0415

    shape = _shape(scratch)
    heads = (shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim
    hidden, wide = shape.hidden_size, shape.intermediate_size
    layer = {
        "qkv": (hidden, heads),
        "output": (shape.num_attention_heads * shape.head_dim, hidden),
        "gate": (hidden, wide),
        "up": (hidden, wide),
        "down": (wide, hidden),
    }
    row: dict[str, Any] = {"rows": FLOOR_ROWS}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        seconds = {key: _product_seconds(FLOOR_ROWS, size, dtype) for key, size in layer.items()}
        in_layer = sum(seconds.values())
        head = _product_seconds(HEAD_ROWS, (hidden, shape.vocab_size), dtype) * FLOOR_ROWS / HEAD_ROWS
        flops = 2 * FLOOR_ROWS * sum(inner * outer for inner, outer in layer.values())
        row[name] = {
            "milliseconds": {key: round(1e3 * value, 3) for key, value in seconds.items()},
            "head_milliseconds": round(1e3 * head, 3),
            "tflops": round(flops / in_layer / 1e12, 1),
            "tokens_per_second": round(FLOOR_ROWS / 2 / (shape.num_hidden_layers * in_layer + head), 1),
        }
    return row


def _product_seconds(rows: int, size: tuple[int, int], dtype: torch.dtype) -> float:
    import torch  # noqa: PLC0415

    left = torch.randn(rows, size[0], device=DEVICE, dtype=dtype)
    right = torch.randn(size[1], size[0], device=DEVICE, dtype=dtype)
    times = []
    for _ in range(8):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        torch.nn.functional.linear(left, right)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return median(times[3:])


def _fidelity(scratch: Path, *forms: str) -> dict[str, Any]:
    """Score problems with the bundled pair: every form, and PyTorch in 16 bits, against fp64."""
    import torch  # noqa: PLC0415
    from parity_tests import bundled  # noqa: PLC0415
    from parity_tests.support.fp64_reference import Numerics, pair_logprobs  # noqa: PLC0415
    from transformers import Qwen2ForCausalLM  # noqa: PLC0415

    models = bundled.EXAMPLE.write(scratch / "example")
    problems = bundled.Problems.read(bundled.PROBLEMS, models, EXAMPLE_PROBLEMS)
    truth = pair_logprobs(models.policy, models.reference, problems.ids, Numerics.FP64)
    errors: dict[str, float] = {}
    text = Texts(None, bundled_texts().records[:1])  # it is measured here, on more
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


def _ours(scratch: Path, form: str, residency: str) -> dict[str, Any]:
    folder = scratch / form.replace(" ", "-")
    if not (folder / "pair").is_dir():
        write_hollow_pair(folder, _shape(scratch), MEASURED[form])
    row: dict[str, Any] = {"form": form, "residency": residency}
    with gpu_peak_mb() as peak:
        pair = Pair.open(folder / "pair")
        settings = fit_settings(pair.manifest, residency=Residency(residency))
        vocabulary = pair.manifest.architecture.vocab_size
        started = time.perf_counter()
        engine = OrtEngine(pair, EngineOptions(residency=settings.residency, head_rows=settings.head_rows))
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
            text = _text(scratch, pair)
            row["text"] = _timed(engine, text, settings, repeats)
        if in_full:
            row["text_not_shared"] = _timed(engine, text, settings, repeats, share=False)
            row["batches"] = [
                {"max_batch_tokens": tokens}
                | _timed(engine, _random(vocabulary, 32), replace(settings, max_batch_tokens=tokens), repeats)
                for tokens in BATCHES
            ]
    return row | {"peak_mb": peak[0]}


def _peer(scratch: Path, precision: str) -> dict[str, Any]:
    """PyTorch as the model card does it, or with bitsandbytes' products in it."""
    row: dict[str, Any] = {"peer": f"transformers {precision}"}
    folder = next(scratch.glob("*/policy"))
    text = _text(scratch, Pair.open(folder.parent / "pair"))
    with gpu_peak_mb() as peak:
        models = [random_model(folder, precision) for _ in range(2)]
        row["loaded_mb"] = peak[0]
        row["text"] = _repeated(lambda: by_torch(models, text, 1), text)
        row["text_batches_of_8"] = _repeated(lambda: by_torch(models, text, 8), text)
    return row | {"peak_mb": peak[0]}


def _profile(scratch: Path, form: str) -> dict[str, Any]:
    """Milliseconds of each kind of operator, two layers and the head over one large batch.

    Every kernel is waited for (CUDA_LAUNCH_BLOCKING, set for this part), so that ONNX Runtime's own profile
    shows what the GPU took.
    """
    import onnxruntime as ort  # noqa: PLC0415

    shape = replace(_shape(scratch), num_hidden_layers=2)
    folder = scratch / f"profile-{form.replace(' ', '-')}"
    pair = Pair.open(write_hollow_pair(folder, shape, MEASURED[form]))
    create, opened = ort.InferenceSession, {}

    def profiled(source: str, options: ort.SessionOptions, **keywords: Any) -> ort.InferenceSession:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / Path(source).stem)
        opened[Path(source).stem] = create(source, options, **keywords)
        return opened[Path(source).stem]

    provider.ort.InferenceSession = profiled
    settings = fit_settings(pair.manifest)
    engine = OrtEngine(pair, EngineOptions(head_rows=settings.head_rows))
    for _ in range(2):
        _scored(engine, _random(shape.vocab_size, CUDA_BATCH_TOKENS // SEQUENCE_TOKENS), settings)
    row: dict[str, Any] = {"form": form, "layers": 2, "rows": CUDA_BATCH_TOKENS}
    for name, session in opened.items():
        events = json.loads(Path(session.end_profiling()).read_text())
        kernels = [event for event in events if event["name"].endswith("_kernel_time")]
        spent: Counter[str] = Counter()
        for event in kernels[len(kernels) // 2 :]:  # the second run
            spent[event["args"]["op_name"]] += event["dur"]
        row[name] = {kind: round(micros / 1e3, 3) for kind, micros in spent.most_common(12)}
    return row


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    "floor": lambda scratch: _floor(Path(scratch)),
    "fidelity": lambda scratch, *forms: _fidelity(Path(scratch), *forms),
    "ours": lambda scratch, form, residency: _ours(Path(scratch), form, residency),
    "profile": lambda scratch, form: _profile(Path(scratch), form),
    "peer": lambda scratch, precision: _peer(Path(scratch), precision),
}


def _child(part: str, scratch: Path, *arguments: str) -> dict[str, Any]:
    """Run a part in a process of its own; one that fails leaves its last lines in place of a row."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", part, str(scratch), *arguments]
    environment = os.environ | ({"CUDA_LAUNCH_BLOCKING": "1"} if part == "profile" else {})
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row
    return {"arguments": arguments, "failed": done.stderr.strip().splitlines()[-8:]}


# What the parts have in common


def _timed(
    engine: OrtEngine, sequences: Sequence[Tokens], settings: Settings, repeats: int, *, share: bool = True
) -> dict[str, Any]:
    return _repeated(lambda: _scored(engine, sequences, settings, share=share), sequences, repeats)


def _repeated(
    score: Callable[[], object], sequences: Sequence[Tokens], repeats: int = REPEATS
) -> dict[str, Any]:
    """Score once to warm up, then so many times."""
    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        score()
        seconds.append(time.perf_counter() - started)
    tokens = sum(map(len, sequences))
    return {"sequences": len(sequences), "tokens": tokens, **rounded(rate(tokens, seconds[1:]))}


def _scored(
    engine: OrtEngine, sequences: Sequence[Tokens], settings: Settings, *, share: bool = True
) -> list[PairLogprobs]:
    """Score sequences as one window, planning included."""
    return LoadedPair(engine, settings, share).window(sequences)


def _random(vocabulary: int, count: int) -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocabulary, SEQUENCE_TOKENS) for _ in range(count)]


def _text(scratch: Path, pair: Pair) -> list[Tokens]:
    """The sample of best-of-8 solutions, chosen once; random ids without the shared data."""
    path = scratch / "text.npz"
    if SHARED_DATA is None:
        return _random(pair.manifest.architecture.vocab_size, 8 * PROBLEMS)
    if not path.exists():
        np.savez(path, *best_of_8(pair.encoder(), PROBLEMS).sequences)
    with np.load(path) as arrays:
        return [arrays[f"arr_{index}"] for index in range(len(arrays.files))]


def _shape(scratch: Path) -> DecoderConfig:
    return DecoderConfig(**json.loads((scratch / "shape.json").read_text()))


if __name__ == "__main__":
    main()
