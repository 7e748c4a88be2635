"""Runs the staged pair with the runtime and compares it with plain numpy on the source weights.

Some kernels of ONNX Runtime give zeros or NaN for some block sizes and machines, without an error, so that a
pair is never sealed before it was run. Layers are run one at a time where the backend supports it: the check
then needs the memory of one layer, however deep the model is.
"""

from __future__ import annotations

import sys
from types import MappingProxyType

import numpy as np

from stepscore.artifact.manifest import Manifest, Selftest
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import pack
from stepscore.engine import open_engine
from stepscore.engine.base import Engine, EngineOptions
from stepscore.engine.ort.provider_checks import runs_here
from stepscore.enums import Convention, Precision, Provider
from stepscore.errors import SelftestFailed
from stepscore.memory.settings import residencies
from stepscore.prompt.encoder import PromptEncoder
from stepscore.system import give_back_memory
from stepscore_export.checkpoint.weight_source import Members
from stepscore_export.reference.numpy_forward import hidden_and_logprobs
from stepscore_export.validation.advice import better_form

PROBLEM = "A box holds 12 pens. How many pens are in 3 boxes?"
STEPS = ("Each box holds 12 pens.", "3 boxes hold 3 * 12 = 36 pens, so the answer is \\boxed{36}.")

# Relative RMS error, of the final hidden states and of the log-probs around their mean, that rounding alone
# does not explain. Rounding gives about 1e-6, 1e-3, 1e-2, 1e-2 and 1e-1 (more on a model with random
# weights); zeros or noise give 1 or more.
LIMITS = MappingProxyType(
    {
        Precision.FP32: 1e-3,
        Precision.FP16: 0.05,
        Precision.BF16: 0.2,
        Precision.INT8: 0.2,
        Precision.INT4: 0.7,
        Precision.NF4: 0.7,
        Precision.FP4: 0.9,
    }
)


def run_selftest(pair: Pair, checkpoints: Members, stored: Members) -> Selftest:
    """Return the errors of the worse model; raise SelftestFailed where they exceed the limit."""
    manifest = pair.manifest
    encoder = PromptEncoder(pair.tokenizer_json(), manifest.template, max_tokens=sys.maxsize)
    token_ids = encoder.encode(PROBLEM, STEPS, Convention.CARD).token_ids
    token_ids = token_ids[: manifest.architecture.max_position_embeddings]
    engine = lean_engine(pair)
    batch = pack([token_ids], [0], given=engine.given)
    hidden, logprobs = engine.trace(batch)
    known = engine.given.match(token_ids, 0).rows[:-1]  # their hidden rows are stored, not computed
    provider = engine.provider
    engine.close()
    del engine
    give_back_memory()
    hidden_error = logprob_error = 0.0
    for name, checkpoint in checkpoints.items():
        normed, true_logprobs = hidden_and_logprobs(checkpoint, token_ids, scaled=False)
        true_hidden = stored[name].head_input(normed.astype(np.float32)).astype(np.float64)
        hidden_off = _rms(hidden[name] - true_hidden[len(known) :])
        (pairs,) = batch.target_of
        logprobs_off = _rms(logprobs[name][pairs] - true_logprobs)
        _check(manifest, f"{name} gives hidden states", hidden_off / _rms(true_hidden))
        _check(manifest, f"{name} gives log-probs", logprobs_off / (float(true_logprobs.std()) + 1e-6))
        hidden_error = max(hidden_error, hidden_off / _rms(true_hidden))
        logprob_error = max(logprob_error, logprobs_off)
    return Selftest(
        "cuda" if provider is Provider.CUDA else "cpu",
        len(token_ids),
        float(f"{hidden_error:.3g}"),
        float(f"{logprob_error:.3g}"),
    )


def lean_engine(pair: Pair) -> Engine:
    """Open a pair with the least memory: one layer at a time where the backend supports it.

    A pair for a provider that this machine does not have runs on the CPU.
    """
    target = pair.manifest.target
    elsewhere = target is not None and not runs_here(target)
    provider = Provider.CPU if elsewhere else Provider.AUTO
    residency = residencies(pair.manifest)[-1]
    return open_engine(pair, EngineOptions(provider, residency, prefetch_next_layer=False))


def _check(manifest: Manifest, what: str, error: float) -> None:
    limit, better = LIMITS[manifest.precision], better_form(manifest)
    if not error < limit:  # NaN too
        remedy = "no other form is closer" if better is None else f"export with {better}"
        raise SelftestFailed(
            f"the staged {what} with a relative error of {error:.3g}, "
            f"which exceeds the {manifest.precision} limit of {limit}",
            hint=f"{remedy}; if that fails too, report it with the output of `stepscore doctor`",
        )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
