"""How much scoring takes and what is chosen to stay within a limit: laws, for the figures are measured."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore import memory
from stepscore.choices import (
    Activations,
    Coding,
    DifferencePrecision,
    Exporter,
    Format,
    Precision,
    Products,
    Residency,
    Target,
)
from stepscore.errors import DoesNotFit
from stepscore.manifest import (
    BODY,
    EMBED,
    HEAD,
    SCHEMA_VERSION,
    TOKENIZER,
    Architecture,
    Difference,
    Distance,
    Extent,
    FileEntry,
    Manifest,
    Source,
    Unit,
    head_files,
    layer_file,
)
from stepscore.memory import Estimate, Load, Settings, available_bytes, estimate, settle, usual_head_rows
from stepscore.plan import pack, plan
from stepscore.prompt import Template

BILLIONS = Architecture(3584, 18944, 28, 28, 4, 128, 152_064, 32_768)
CODED = {
    "merged": Difference(DifferencePrecision.INT4, Activations.EXACT, Products.MERGED),
    "separate": Difference(DifferencePrecision.INT4, Activations.EXACT, Products.SEPARATE),
    "integer": Difference(DifferencePrecision.INT8, Activations.INT8, None),
}


def manifest(
    shape: Architecture = BILLIONS,
    *,
    precision: Precision = Precision.FP16,
    difference: Difference | None = None,
    target: Target = Target.CPU,
) -> Manifest:
    """A pair of this shape; a weight of each model has two bytes."""
    coded = difference is not None
    models = 2 if coded else 1
    layer, table = 3 * shape.hidden_size * shape.intermediate_size, shape.hidden_size * shape.vocab_size
    weights = {layer_file(index): layer for index in range(shape.num_hidden_layers)}
    weights |= {EMBED: table, HEAD: table, BODY: layer * shape.num_hidden_layers}
    heads = head_files(shape.vocab_size)
    weights |= {name: -(-table // len(heads)) for name in heads}
    extents = {name: Extent(0, 2 * models * size) for name, size in weights.items()}
    units = (Unit("policy", ("policy",), extents), Unit("reference", ("reference",), extents))
    return Manifest(
        schema_version=SCHEMA_VERSION,
        policy=Source("policy"),
        reference=Source("reference"),
        architecture=shape,
        format=Format.ONNX,
        exporter=Exporter.STEPSCORE,
        precision=precision,
        block_size=32,
        target=target,
        coding=Coding.DIFFERENCE if coded else Coding.INDEPENDENT,
        difference=difference,
        distance=Distance(0.01, {}),
        beta=0.001,
        template=Template("a", "b", "c"),
        units=(Unit("both", ("reference", "policy"), extents),) if coded else units,
        selftest=None,
        fidelity=None,
        versions={},
        files={TOKENIZER: FileEntry(7_000_000, "0" * 64)},
    )


BATCHES = [2048, 1024, 512, 256, 128]

EVERY_KIND = [
    *(manifest(precision=precision) for precision in (Precision.FP32, Precision.FP16, Precision.INT8)),
    *(manifest(precision=Precision.INT8, difference=difference) for difference in CODED.values()),
]
every_kind = pytest.mark.parametrize(
    "pair", EVERY_KIND, ids=["fp32", "fp16", "int8", *(f"coded-{name}" for name in CODED)]
)

SHAPES = st.builds(
    lambda heads, width, **sizes: Architecture(
        hidden_size=heads * width,
        num_attention_heads=heads,
        num_key_value_heads=1,
        head_dim=width,
        max_position_embeddings=4096,
        **sizes,
    ),
    heads=st.integers(1, 64),
    width=st.sampled_from([16, 64, 128]),
    intermediate_size=st.integers(1, 30_000),
    num_hidden_layers=st.integers(1, 80),
    vocab_size=st.integers(1, 200_000),
)
MANIFESTS = st.builds(
    manifest,
    SHAPES,
    precision=st.sampled_from(Format.ONNX.precisions),
    difference=st.none() | st.sampled_from(list(CODED.values())),
)
RESIDENCIES = st.sampled_from([Residency.RESIDENT, Residency.ALTERNATE, Residency.STREAM])
SETTINGS = st.builds(
    Settings, RESIDENCIES, st.integers(1, 100_000), st.integers(1, 1_000_000), st.integers(1, 10_000)
)
LOADS = st.builds(Load, *[st.integers(0, 1_000_000)] * 3)

SLOWER = {Residency.RESIDENT: 0, Residency.ALTERNATE: 1, Residency.STREAM: 2}


def total(pair: Manifest, residency: Residency, tokens: int) -> int:
    """What the pair needs with this residency and batch."""
    return estimate(pair, settle(pair, residency=residency, max_batch_tokens=tokens)).total


def units(pair: Manifest) -> list[Residency]:
    """The residencies that `auto` chooses from."""
    models = [Residency.ALTERNATE] if len(pair.units) > 1 else []
    return [Residency.RESIDENT, *models, Residency.STREAM]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with no memory free."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    return monkeypatch


# What is chosen.


@every_kind
def test_auto_is_resident_in_full_batches_where_that_fits(pair: Manifest) -> None:
    needed = total(pair, Residency.RESIDENT, memory.BATCH_TOKENS)
    settings = settle(pair, memory_limit=needed)
    assert (settings.residency, settings.max_batch_tokens) == (Residency.RESIDENT, memory.BATCH_TOKENS)


@every_kind
def test_smaller_batches_come_before_another_residency(pair: Manifest) -> None:
    needed = total(pair, Residency.RESIDENT, memory.BATCH_TOKENS)
    settings = settle(pair, memory_limit=needed - 1)
    assert settings.residency is Residency.RESIDENT
    assert settings.max_batch_tokens < memory.BATCH_TOKENS


@every_kind
def test_where_both_models_do_not_fit_one_is_held_at_a_time_and_one_layer_of_a_coded_pair(
    pair: Manifest,
) -> None:
    needed = total(pair, Residency.RESIDENT, memory.LEAST_BATCH_TOKENS)
    expected = Residency.STREAM if pair.difference is not None else Residency.ALTERNATE
    assert settle(pair, memory_limit=needed - 1).residency is expected


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_where_one_model_does_not_fit_one_layer_is_held_at_a_time(precision: Precision) -> None:
    pair = manifest(precision=precision)
    needed = total(pair, Residency.ALTERNATE, memory.LEAST_BATCH_TOKENS)
    assert settle(pair, memory_limit=needed - 1).residency is Residency.STREAM


@given(MANIFESTS, st.integers(1, 10**12))
def test_what_is_chosen_fits_and_nothing_faster_does(pair: Manifest, limit: int) -> None:
    try:
        settings = settle(pair, memory_limit=limit)
    except DoesNotFit:
        settings = None
    else:
        assert estimate(pair, settings).total <= limit
    for residency in units(pair):
        tokens = memory.BATCH_TOKENS
        while tokens >= memory.LEAST_BATCH_TOKENS:
            if settings and (residency, tokens) == (settings.residency, settings.max_batch_tokens):
                return
            assert total(pair, residency, tokens) > limit
            tokens //= 2
    assert settings is None


@given(MANIFESTS, st.integers(1, 10**12), st.integers(0, 10**12))
def test_more_memory_is_never_slower(pair: Manifest, limit: int, more: int) -> None:
    try:
        tight = settle(pair, memory_limit=limit)
    except DoesNotFit:
        return
    roomy = settle(pair, memory_limit=limit + more)
    assert SLOWER[roomy.residency] <= SLOWER[tight.residency]
    if roomy.residency is tight.residency:
        assert roomy.max_batch_tokens >= tight.max_batch_tokens


@given(MANIFESTS, RESIDENCIES, *[st.integers(1, 100_000)] * 2, st.none() | st.integers(10**10, 10**13))
def test_what_is_given_is_kept(
    pair: Manifest, residency: Residency, tokens: int, window: int, limit: int | None
) -> None:
    try:
        settings = settle(
            pair, residency=residency, max_batch_tokens=tokens, window_tokens=window, memory_limit=limit
        )
    except DoesNotFit:
        assert limit is not None
        kept = settle(pair, residency=residency, max_batch_tokens=tokens, window_tokens=window)
        assert estimate(pair, kept).total > limit
        return
    assert (settings.residency, settings.max_batch_tokens) == (residency, tokens)
    assert settings.window_tokens == max(window, tokens)


@every_kind
def test_a_given_residency_gets_the_largest_batch_that_fits(pair: Manifest) -> None:
    for residency, tokens in itertools.product(units(pair), BATCHES):
        settings = settle(pair, residency=residency, memory_limit=total(pair, residency, tokens))
        assert settings.residency is residency
        assert settings.max_batch_tokens >= tokens


@given(MANIFESTS, RESIDENCIES, st.none() | st.integers(1, 50_000), st.none() | st.integers(1, 50_000))
def test_no_window_is_smaller_than_a_batch_and_no_chunk_of_the_head_larger(
    pair: Manifest, residency: Residency, tokens: int | None, window: int | None
) -> None:
    settings = settle(pair, residency=residency, max_batch_tokens=tokens, window_tokens=window)
    assert settings.window_tokens >= settings.max_batch_tokens >= settings.head_rows >= 1
    assert settings.head_rows <= usual_head_rows(pair)


@every_kind
@pytest.mark.usefixtures("free")
def test_where_nothing_is_free_the_least_is_tried_and_nothing_refused(pair: Manifest) -> None:
    settings = settle(pair)
    tried = itertools.product(units(pair), BATCHES)
    assert estimate(pair, settings).total == min(total(pair, *each) for each in tried)


@every_kind
def test_without_a_limit_what_is_free_decides(pair: Manifest, free: pytest.MonkeyPatch) -> None:
    needed = total(pair, Residency.RESIDENT, 512)
    free.setattr(memory, "available_bytes", lambda: needed)
    assert settle(pair) == settle(pair, memory_limit=needed)


def test_where_nobody_says_what_is_free_everything_is_resident(free: pytest.MonkeyPatch) -> None:
    free.setattr(memory, "available_bytes", lambda: None)
    settings = settle(manifest())
    assert (settings.residency, settings.max_batch_tokens) == (Residency.RESIDENT, memory.BATCH_TOKENS)


@pytest.mark.usefixtures("free")
def test_a_pair_for_cuda_is_resident_whatever_the_host_has() -> None:
    settings = settle(manifest(target=Target.CUDA))
    assert (settings.residency, settings.max_batch_tokens) == (Residency.RESIDENT, memory.CUDA_BATCH_TOKENS)
    assert not settings.holds_scores


def test_a_gpu_holds_weights_once_and_batches_in_16_bits() -> None:
    """What was measured on an H200 (benchmarks/results/gpu_h200.json), two fp16 models of 7.6B."""
    weights = 2 * 2 * 7_615_616_512
    pair = manifest(target=Target.CUDA)
    for rows, measured in ((1024, 32_549), (4096, 33_685), (8192, 35_220)):
        settings = settle(pair, max_batch_tokens=rows)
        found = estimate(pair, settings)
        others = found.total - found.weights + weights  # the pair of this test has no attention
        assert others / 1e6 == pytest.approx(measured, rel=0.02)


def test_a_limit_of_a_gpus_memory_chooses_the_residency() -> None:
    pair = manifest(target=Target.CUDA)
    needs = [total(pair, each, 1024) for each in (Residency.RESIDENT, Residency.STREAM)]
    assert needs[0] > needs[1]
    settings = settle(pair, memory_limit=sum(needs) // 2)
    assert settings.residency is not Residency.RESIDENT
    with pytest.raises(DoesNotFit):
        settle(pair, memory_limit=1 << 20)


@every_kind
@pytest.mark.parametrize("residency", Residency)
def test_a_limit_too_low_for_all_names_what_is_needed_and_the_limit(
    pair: Manifest, residency: Residency
) -> None:
    least = Residency.STREAM if residency is Residency.AUTO else residency
    needed = total(pair, least, memory.LEAST_BATCH_TOKENS)
    with pytest.raises(DoesNotFit) as caught:
        settle(pair, residency=residency, memory_limit=needed // 2)
    assert f"{least} scoring in batches of {memory.LEAST_BATCH_TOKENS} tokens" in caught.value.message
    named = re.search(r"about ([0-9.]+) GB; the limit is ([0-9.]+) GB", caught.value.message)
    assert named is not None
    assert [float(text) for text in named.groups()] == pytest.approx([needed / 1e9, needed / 2e9], abs=0.06)
    assert caught.value.hint is not None
    assert "--memory-limit" in caught.value.hint
    assert caught.value.exit_code == 3


# How much it takes.


@given(MANIFESTS, SETTINGS, LOADS, LOADS)
def test_a_larger_load_never_takes_less(pair: Manifest, settings: Settings, one: Load, more: Load) -> None:
    larger = Load(one.rows + more.rows, one.scores + more.scores, one.window_rows + more.window_rows)
    assert estimate(pair, settings, larger).total >= estimate(pair, settings, one).total


@given(MANIFESTS, SETTINGS, LOADS, st.integers(1, 10_000))
def test_larger_chunks_of_the_head_never_take_less(
    pair: Manifest, settings: Settings, load: Load, more: int
) -> None:
    larger = replace(settings, head_rows=settings.head_rows + more)
    assert estimate(pair, larger, load).total >= estimate(pair, settings, load).total


@every_kind
def test_a_batch_grows_with_its_rows_its_scores_and_the_heads_chunk(pair: Manifest) -> None:
    settings = Settings(Residency.RESIDENT, 4096, 16_384, 256)

    def batch(load: Load, head_rows: int = 256) -> int:
        return estimate(pair, replace(settings, head_rows=head_rows), load).batch

    assert batch(Load(4096, 1, 1)) > batch(Load(2048, 1, 1)) > batch(Load(1, 1, 1)) > 0
    assert batch(Load(1, 1 << 34, 1)) > batch(Load(1, 1 << 33, 1))
    narrow = msgspec.structs.replace(pair.architecture, intermediate_size=1, hidden_size=1)
    pair = msgspec.structs.replace(pair, architecture=narrow)
    assert batch(Load(4096, 1, 1), 2048) > batch(Load(4096, 1, 1), 1024)


@given(MANIFESTS, SETTINGS, LOADS)
def test_rows_of_a_window_wait_only_between_models_or_layers(
    pair: Manifest, settings: Settings, load: Load
) -> None:
    one = estimate(pair, settings, load).window
    more = estimate(pair, settings, replace(load, window_rows=2 * load.window_rows + 1)).window
    assert more == one == 0 if settings.residency is Residency.RESIDENT else more > one


@given(MANIFESTS, SETTINGS, LOADS)
def test_a_layer_weighs_no_more_than_a_model_and_a_model_no_more_than_all(
    pair: Manifest, settings: Settings, load: Load
) -> None:
    layer, model, all_ = (
        estimate(pair, replace(settings, residency=residency), load).weights
        for residency in (Residency.STREAM, Residency.ALTERNATE, Residency.RESIDENT)
    )
    assert 0 < layer <= model <= all_
    if len(pair.units) == 1:
        assert model == all_


@given(SHAPES, st.sampled_from(list(CODED.values())), SETTINGS)
def test_streaming_weights_do_not_grow_with_depth(
    shape: Architecture, difference: Difference, settings: Settings
) -> None:
    deeper = msgspec.structs.replace(shape, num_hidden_layers=shape.num_hidden_layers + 7)
    streamed = replace(settings, residency=Residency.STREAM)
    one, other = (estimate(manifest(each, difference=difference), streamed) for each in (shape, deeper))
    assert one == other


@given(MANIFESTS, SETTINGS)
def test_without_a_load_batches_are_full(pair: Manifest, settings: Settings) -> None:
    rows = settings.max_batch_tokens
    usual = Load.usual(settings)
    assert estimate(pair, settings) == estimate(pair, settings, usual)
    assert usual.rows == rows
    assert rows <= usual.scores <= 512 * rows
    assert usual.window_rows == max(settings.window_tokens, rows)


@given(st.builds(Estimate, *[st.integers(0, 10**12)] * 4))
def test_the_total_is_the_sum(parts: Estimate) -> None:
    assert parts.total == parts.process + parts.weights + parts.batch + parts.window


# What a run holds at once.


def test_a_load_is_the_most_of_each() -> None:
    two = pack([np.arange(5), np.arange(10, 13)], [0, 0])  # 8 rows, 2 lines of 5
    long = pack([np.arange(7)], [0])  # 7 rows, 1 line of 7
    both = Load(rows=8, scores=50, window_rows=8, vocabulary=10, positions=10)
    assert Load.of([[two], [long]]) == both
    assert Load.of([[long, two], [], [long]]) == replace(both, window_rows=15)
    assert Load.of([[long]]) == Load(rows=7, scores=49, window_rows=7, vocabulary=7, positions=7)


def test_a_load_counts_shared_rows_once() -> None:
    window = [np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), np.array([1, 2])]
    batches = [group.batch for group in plan(window, [0, 0, 0], 100)]
    assert Load.of([batches]) == Load(rows=5, scores=2 * 4 * 4, window_rows=5, vocabulary=5, positions=2 * 4)


def test_what_optimum_traced_grows_with_the_positions_of_the_padded_view() -> None:
    ours = manifest(precision=Precision.FP32)
    traced = msgspec.structs.replace(ours, exporter=Exporter.OPTIMUM)
    settings = Settings(Residency.RESIDENT, 4096, 16_384, 256)
    loads = [Load(2048, 1, 1, positions=positions) for positions in (2048, 4096)]
    assert [estimate(ours, settings, load).batch for load in loads] == [
        estimate(ours, settings, loads[0]).batch
    ] * 2
    assert estimate(traced, settings, loads[1]).batch > estimate(traced, settings, loads[0]).batch


@pytest.mark.parametrize("limit", [None, 60_000_000_000, 18_000_000_000])
def test_what_optimum_traced_is_never_streamed(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1)
    pair = msgspec.structs.replace(manifest(precision=Precision.FP16), exporter=Exporter.OPTIMUM)
    try:
        settings = settle(pair, memory_limit=limit)
    except DoesNotFit:
        assert limit == 18_000_000_000
    else:
        assert settings.residency in {Residency.RESIDENT, Residency.ALTERNATE}


@pytest.mark.parametrize("windows", [[], [[]]])
def test_without_a_batch_there_is_no_load(windows: list[list[object]]) -> None:
    assert Load.of(windows) == Load(0, 0, 0, 0)  # type: ignore[arg-type]


# What is free.


def test_what_is_free_is_a_number_of_bytes_or_unknown() -> None:
    free = available_bytes()
    assert free is None or 1 << 20 < free < 1 << 50
