"""The engine of pairs for CUDA on the CPU provider: its numbers in every form, residency and window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from testing.checkpoints import write_checkpoint
from testing.cuda_forms import CUDA_FORMS, LOSSLESS, a_cuda_form_of_each_kind, every_cuda_form
from testing.fake_cudart import FAILED, fake_runtime
from testing.pairs import Checkpoints, PairOf, export_unmeasured
from testing.sequences import tokens
from testing.solutions import SOLUTIONS

from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch, pack
from stepscore.engine import open_engine
from stepscore.engine.base import Engine, EngineOptions, PairLogprobs
from stepscore.engine.cuda.cudart import CudaCopies
from stepscore.engine.cuda.device import HostDevice
from stepscore.engine.cuda.engine import CudaEngine
from stepscore.engine.cuda.hardware import Hardware, compute_type, host_hardware
from stepscore.engine.cuda.lossless_decoder import HostDecoder
from stepscore.engine.element_types import BFLOAT16, FLOAT, FLOAT16
from stepscore.engine.ort.sessions import Sessions
from stepscore.enums import Convention, Precision, Provider, Residency
from stepscore.errors import ModelInvalid
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings, most_resident
from stepscore.memory.gpu import stage_sizes
from stepscore.memory.peak import PeakLoad
from stepscore.memory.settings import Settings
from stepscore.scorer import Scorer


def on_cpu(pair: Pair, residency: Residency = Residency.RESIDENT, kept: int = 0) -> CudaEngine:
    """Open a pair on the CPU provider, in fp32."""
    return CudaEngine(pair, EngineOptions(Provider.CPU, residency, resident_stages=kept))


def window(engine: Engine) -> list[Batch]:
    """Ragged batches, a shared beginning, a start behind the first token, a single computed row."""
    first, second, *others = tokens(60, 33, 17, 5, 24)
    sequences = [first, np.concatenate([first[:40], second]), *others]
    one = pack(sequences, [0, 35, 3, 0, 20], given=engine.given)
    return [one, pack(tokens(2), [0], given=engine.given), pack(tokens(50), [48], given=engine.given)]


def joined(results: Sequence[PairLogprobs]) -> np.ndarray:
    """All log-probs of a window, policy first."""
    return np.concatenate([each[name] for name in ("policy", "reference") for each in results])


@pytest.fixture(scope="module")
def truth(tiny_pair: Path) -> np.ndarray:
    engine = open_engine(Pair.open(tiny_pair))
    first, second, *others = tokens(60, 33, 17, 5, 24)
    sequences = [first, np.concatenate([first[:40], second]), *others]
    one = pack(sequences, [0, 35, 3, 0, 20], given=engine.given)
    batches = [
        one,
        *(pack(tokens(length), [start], given=engine.given) for length, start in ((2, 0), (50, 48))),
    ]
    return joined(list(engine.run(batches)))


@every_cuda_form
def test_numbers_are_those_of_the_checkpoints(pair_of: PairOf, form: str, truth: np.ndarray) -> None:
    options, bound = CUDA_FORMS[form]
    engine = on_cpu(Pair.open(pair_of.form(options)))
    if form == "no-prefix":
        assert len(engine.given) == 0
        return
    assert np.abs(joined(list(engine.run(window(engine)))) - truth).max() < bound
    engine.close()


@every_cuda_form
def test_every_residency_gives_the_same_bits_in_every_window(pair_of: PairOf, form: str) -> None:
    pair = Pair.open(pair_of.form(CUDA_FORMS[form][0]))
    stages = len(stage_sizes(pair.manifest))
    found = []
    for residency, kept in [
        (Residency.RESIDENT, 0),
        (Residency.STREAM, 0),
        *((Residency.PARTIAL, count) for count in range(stages + 1)),
    ]:
        engine = on_cpu(pair, residency, kept)
        found += [joined(list(engine.run(window(engine)))) for _ in range(2)]
        engine.close()
    assert all(np.array_equal(found[0], each) for each in found[1:])


@every_cuda_form
def test_the_graphs_of_the_gpu_run_on_the_cpu_and_agree(pair_of: PairOf, form: str) -> None:
    """In 16 bits; ONNX Runtime's CPU provider has no bf16."""
    pair = Pair.open(pair_of.form(CUDA_FORMS[form][0]))
    if compute_type(pair.manifest) == BFLOAT16:
        pytest.skip("the CPU provider has no kernels for bf16")
    exact = on_cpu(pair)
    truth = joined(list(exact.run(window(exact))))
    for fp32_logits in (False, True):
        hardware = host_hardware(FLOAT16, fp32_logits=fp32_logits)
        engine = CudaEngine(pair, EngineOptions(Provider.CPU, Residency.STREAM), hardware)
        assert np.abs(joined(list(engine.run(window(engine)))) - truth).max() < 0.02
        engine.close()


@a_cuda_form_of_each_kind
def test_batches_do_not_change_each_other(pair_of: PairOf, form: str) -> None:
    engine = on_cpu(Pair.open(pair_of.form(CUDA_FORMS[form][0])))
    batches = window(engine)
    together = list(engine.run(batches))
    for batch, results in zip(batches, together, strict=True):
        (alone,) = engine.run([batch])
        assert all(np.array_equal(alone[name], results[name]) for name in results)


@a_cuda_form_of_each_kind
def test_a_window_that_fails_leaves_the_next_one_right(pair_of: PairOf, form: str) -> None:
    engine = on_cpu(Pair.open(pair_of.form(CUDA_FORMS[form][0])), Residency.STREAM)
    truth = joined(list(engine.run(window(engine))))
    bad = pack(tokens(9), [0])  # planned without the given rows: allowed; with rows that are not there: not
    object.__setattr__(bad, "given_rows", np.array([10**6]))
    before = engine.device_bytes
    with pytest.raises(IndexError):
        list(engine.run([bad]))
    assert engine.device_bytes == before
    assert np.array_equal(joined(list(engine.run(window(engine)))), truth)
    assert engine.device_bytes == before


@a_cuda_form_of_each_kind
def test_given_rows_give_the_numbers_of_computed_ones(pair_of: PairOf, form: str) -> None:
    pair = Pair.open(pair_of.form(CUDA_FORMS[form][0]))
    engine = on_cpu(pair)
    ids = [pair.encoder().encode(each.problem, each.steps, Convention.CARD).token_ids for each in SOLUTIONS]
    batches = [pack(ids, [0] * len(ids), given=engine.given), pack(ids, [0] * len(ids))]
    given, computed = (
        np.concatenate([each["policy"][targets] for targets in batch.target_of])
        for each, batch in zip(engine.run(batches), batches, strict=True)
    )
    assert len(engine.given) > 10
    assert np.abs(given - computed).max() < CUDA_FORMS[form][1]


def test_rows_looked_up_ahead_are_used_once_and_give_the_same_bits(pair_of: PairOf) -> None:
    engine = on_cpu(Pair.open(pair_of.form(CUDA_FORMS["int8-int4"][0])))
    batches = window(engine)
    plain = joined(list(engine.run(batches)))
    engine.prepare(batches)
    engine.prepare(window(engine))  # of a window that never runs
    assert np.array_equal(joined(list(engine.run(batches))), plain)
    assert np.array_equal(joined(list(engine.run(batches))), plain)


def test_hidden_states_are_those_of_the_pair_for_the_cpu(pair_of: PairOf, tiny_pair: Path) -> None:
    cuda, cpu = on_cpu(Pair.open(pair_of.form(CUDA_FORMS["fp16"][0]))), open_engine(Pair.open(tiny_pair))
    batch = window(cuda)[0]
    (found, logprobs), (truth, _) = cuda.trace(batch), cpu.trace(batch)
    for name, rows in found.items():
        assert rows.shape == truth[name].shape
        assert np.abs(rows - truth[name]).max() < 0.02
    assert {len(each) for each in logprobs.values()} == {batch.num_given + len(batch.target_ids)}


@a_cuda_form_of_each_kind
def test_identical_models_give_exactly_zero(identical_pair_of: PairOf, form: str) -> None:
    engine = on_cpu(Pair.open(identical_pair_of.form(CUDA_FORMS[form][0])))
    for each in engine.run(window(engine)):
        assert np.array_equal(each["policy"], each["reference"])


@every_cuda_form
@pytest.mark.parametrize(("residency", "kept"), [("resident", 0), ("partial", 2), ("stream", 0)])
def test_memory_is_what_the_estimate_says(pair_of: PairOf, form: str, residency: str, kept: int) -> None:
    """Weights, ring, scratch and hidden states to the byte; in 16 bits as on a GPU, and in fp32."""
    pair = Pair.open(pair_of.form(CUDA_FORMS[form][0]))
    for on_gpu in (False, True):
        if on_gpu and compute_type(pair.manifest) == BFLOAT16:
            continue
        options = EngineOptions(Provider.CPU, Residency(residency), resident_stages=kept)
        hardware = host_hardware(FLOAT16 if on_gpu else FLOAT)
        engine = CudaEngine(pair, options, hardware)
        batches = window(engine)
        for _ in engine.run(batches):
            pass
        settings = Settings(options.residency, 99, 99, 99, resident_stages=kept, on_gpu=on_gpu)
        expected = estimate(pair.manifest, settings, PeakLoad.of([batches]))
        assert engine.device_bytes == expected.weights
        engine.close()
        assert hardware.device.most_bytes == expected.weights + expected.window


@a_cuda_form_of_each_kind
def test_streaming_through_the_copies_of_a_gpu(pair_of: PairOf, form: str) -> None:
    """The CUDA runtime is a stub: its streams and locked memory are the host's."""
    pair = Pair.open(pair_of.form(CUDA_FORMS[form][0]))
    plain = on_cpu(pair)
    truth = joined(list(plain.run(window(plain))))
    for failing in ({}, {"cudaHostRegister": FAILED}, {"cudaHostRegister": FAILED, "cudaHostAlloc": FAILED}):
        runtime, library = fake_runtime(**failing)
        hardware = Hardware(HostDevice(), CudaCopies(runtime), HostDecoder(), FLOAT, fp32_logits=False)
        engine = CudaEngine(pair, EngineOptions(Provider.CPU, Residency.STREAM), hardware)
        assert np.array_equal(joined(list(engine.run(window(engine)))), truth)
        engine.close()
        assert library.calls.count("cudaMemcpyAsync") > 0


@pytest.fixture(scope="module")
def in_bf16(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    folder = tmp_path_factory.mktemp("bf16")
    write_checkpoint(folder / "reference", seed=1, dtype="bfloat16")
    write_checkpoint(folder / "policy", seed=1, perturb=0.003, dtype="bfloat16")
    return Checkpoints.at(folder)


@pytest.mark.parametrize("residency", [Residency.RESIDENT, Residency.STREAM])
def test_a_lossless_pair_gives_the_numbers_of_its_checkpoints(
    in_bf16: Checkpoints, tmp_path: Path, residency: Residency
) -> None:
    """As a pair that stores both models whole: the same bits."""
    whole = CUDA_FORMS["bf16"][0]
    coded = export_unmeasured(in_bf16.policy, in_bf16.reference, tmp_path / "coded", LOSSLESS)
    plain = export_unmeasured(in_bf16.policy, in_bf16.reference, tmp_path / "plain", whole)
    assert coded.num_bytes() < plain.num_bytes()
    results = []
    for pair in (coded, plain):
        engine = on_cpu(pair, residency)
        results.append(joined(list(engine.run(window(engine)))))
        engine.close()
    assert np.array_equal(*results)


def test_a_lossless_pair_of_models_far_apart_stores_both(in_bf16: Checkpoints, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", seed=2, dtype="bfloat16")
    pair = export_unmeasured(other, in_bf16.reference, tmp_path / "pair", LOSSLESS)
    table = (pair.path / "both" / "tensors.json").read_text()
    assert '"layers.0.qkv.policy"' in table
    assert '"layers.0.qkv.flags"' not in table
    whole = export_unmeasured(other, in_bf16.reference, tmp_path / "whole", CUDA_FORMS["bf16"][0])
    one, two = on_cpu(pair), on_cpu(whole)
    assert np.array_equal(joined(list(one.run(window(one)))), joined(list(two.run(window(two)))))


def test_damaged_lossless_weights_are_an_error(in_bf16: Checkpoints, tmp_path: Path) -> None:
    pair = export_unmeasured(in_bf16.policy, in_bf16.reference, tmp_path / "coded", LOSSLESS)
    weights = pair.path / "both" / "weights.bin"
    data = bytearray(weights.read_bytes())
    flags = msgspec.json.decode((pair.path / "both" / "tensors.json").read_bytes())["layers.0.up.flags"]
    data[flags["offset"]] ^= 0xFF
    data[flags["offset"] + 1] |= 0xFF
    weights.write_bytes(data)
    engine = on_cpu(pair)
    with pytest.raises(ModelInvalid, match="the difference of a matrix is damaged"):
        list(engine.run(window(engine)))


def test_a_scorer_runs_a_cuda_pair_on_the_cpu(pair_of: PairOf, tiny_pair: Path) -> None:
    with (
        Scorer.load(pair_of.form(CUDA_FORMS["fp16"][0]), provider="cpu", residency="stream") as cuda,
        Scorer.load(tiny_pair) as cpu,
    ):
        records = [{"problem": each.problem, "steps": list(each.steps)} for each in SOLUTIONS]
        found, truth = cuda.score(records), cpu.score(records)
        assert cuda.provider is Provider.CPU
    for one, other in zip(found, truth, strict=True):
        np.testing.assert_allclose(one.step_rewards, other.step_rewards, atol=1e-4)


def test_partial_keeps_what_a_limit_allows_and_runs(pair_of: PairOf) -> None:
    pair = Pair.open(pair_of.form(CUDA_FORMS["int8-int4"][0]))
    streamed = fit_settings(
        pair.manifest, residency=Residency.STREAM, provider=Provider.CPU, max_batch_tokens=128
    )
    limit = estimate(pair.manifest, streamed).total + stage_sizes(pair.manifest)[0]
    settings = most_resident(pair.manifest, streamed_as_partial(streamed), limit)
    assert settings.resident_stages > 0
    engine = on_cpu(pair, Residency.PARTIAL, settings.resident_stages)
    list(engine.run(window(engine)))


def streamed_as_partial(settings: Settings) -> Settings:
    """The same batches with partial residency."""
    return replace(settings, residency=Residency.PARTIAL)


@pytest.mark.slow
def test_precisions_compute_in_their_type(pair_of: PairOf) -> None:
    types = {form: compute_type(Pair.open(pair_of.form(CUDA_FORMS[form][0])).manifest) for form in CUDA_FORMS}
    assert {form for form, kind in types.items() if kind == BFLOAT16} == {"bf16"}
    assert Pair.open(pair_of.form(CUDA_FORMS["bf16"][0])).manifest.precision is Precision.BF16


@pytest.mark.parametrize(("form", "expected"), [("fp16", 6), ("int8-int4", 7)])
def test_a_handful_of_sessions_serves_all_layers_of_both_models(
    pair_of: PairOf, monkeypatch: pytest.MonkeyPatch, form: str, expected: int
) -> None:
    """A layer, the last one, a tile of the head, decoders, and an embedding for each unit."""
    opened = []
    open_session = Sessions.open
    monkeypatch.setattr(
        Sessions, "open", lambda self, path, **how: opened.append(path) or open_session(self, path, **how)
    )
    engine = on_cpu(Pair.open(pair_of.form(CUDA_FORMS[form][0])), Residency.STREAM)
    for _ in range(2):
        list(engine.run(window(engine)))
    assert len(opened) == expected, opened
