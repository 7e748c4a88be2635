"""Pairs of bitsandbytes' weights: the numbers of the torch engine, and the laws that rewards rest on."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from parity_tests.support.batches import batches, few_examples, flat, largest_error, sequences
from parity_tests.support.fp64_reference import Numerics, Tokens, logprobs
from parity_tests.support.pair_cache import Workshop
from parity_tests.support.random_pairs import (
    FAMILY_PAIRS,
    ODD,
    TIED,
    UNTIED,
    WIDE,
    Models,
    RandomPair,
)
from safetensors.torch import load_file, save_file
from testing.checkpoints import edit_json
from testing.families import settings_of
from testing.hostile import rehash
from transformers import AutoModelForCausalLM

from stepscore.artifact.graph_contract import TILE
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import pack
from stepscore.engine import open_engine
from stepscore.engine.base import Engine, EngineOptions
from stepscore.engine.pytorch import engine as torch_engine
from stepscore.engine.pytorch import model as torch_model
from stepscore.engine.pytorch.checked_config import checked_config
from stepscore.engine.pytorch.loading import Device
from stepscore.engine.pytorch.model import Model
from stepscore.enums import Format, Precision, Provider, Residency
from stepscore.errors import (
    IntegrityMismatch,
    ModelInvalid,
    PairIncompatible,
    ProviderUnavailable,
    SelftestFailed,
)
from stepscore_export.backends.bitsandbytes import weight_bytes
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.options import BitsandbytesOptions
from stepscore_export.pipeline import export as pipeline
from stepscore_export.pipeline.export import export_pair

WHOLE_BLOCKS = RandomPair("rows of whole blocks", replace(UNTIED.shape, intermediate_size=320))
PRECISIONS = Format.BITSANDBYTES.precisions
each_precision = pytest.mark.parametrize("precision", PRECISIONS)
of_each_kind = pytest.mark.parametrize("precision", [Precision.INT8, Precision.NF4])
"""Codes of eight bits and of four; nf4 and fp4 differ in a table alone."""

Exported = Callable[[RandomPair, Precision], Pair]


@pytest.fixture(scope="module", autouse=True)
def _packages_are_not_searched() -> Iterator[None]:
    """Each model that is released collects garbage, which would look at all objects of PyTorch's modules."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def exported(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A pair of random models at a precision, at the first request."""
    folder = tmp_path_factory.mktemp("bitsandbytes")

    @cache
    def exported(pair: RandomPair, precision: Precision) -> Pair:
        return export(workshop.models(pair), folder / f"{len(list(folder.iterdir()))}", precision)

    return exported


@pytest.fixture(scope="module")
def engine(exported: Exported) -> Iterator[Callable[[Precision], Engine]]:
    @cache
    def engine(precision: Precision) -> Engine:
        return open_engine(exported(UNTIED, precision))

    yield engine
    for precision in (Precision.INT8, Precision.NF4):
        engine(precision).close()


def export(models: Models, output: Path, precision: Precision) -> Pair:
    """Without a fidelity, which test_bitsandbytes_command looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "measure", lambda *_: None)
        options = BitsandbytesOptions(precision)
        return export_pair(models.policy, models.reference, output, options)


def plain_model(folder: Path) -> Model:
    return Model(folder, Device.CPU, settings_of(folder))


def model_logprobs(model: Model, tokens: list[Tokens]) -> list[npt.NDArray[np.float32]]:
    """One model's log-probs, all sequences in one batch."""
    batch = pack(tokens, [0] * len(tokens))
    found = model.logprobs(batch, 64)
    return [found[pairs] for pairs in batch.target_of]


# The numbers


def truth_of(pair: RandomPair) -> Numerics:
    """Float64 for Qwen2, which is written out in fp64_reference; transformers at fp32 for other models."""
    return Numerics.PYTORCH_FP32 if pair in FAMILY_PAIRS else Numerics.FP64


@pytest.mark.parametrize("pair", [TIED, UNTIED, ODD, WIDE, *FAMILY_PAIRS], ids=lambda pair: pair.name)
def test_plain_weights_are_within_1e_4_nats_of_the_truth(workshop: Workshop, pair: RandomPair) -> None:
    policy = workshop.models(pair).policy
    tokens = [*pair.sequences(), pair.sequences()[-1][:100]]
    found = model_logprobs(plain_model(policy), tokens)
    truth = logprobs(policy, tokens, truth_of(pair))
    assert max(float(np.abs(a - b).max()) for a, b in zip(found, truth, strict=True)) <= 1e-4


def dequantised(folder: Path, output: Path) -> Path:
    """The same model with plain fp32 weights, codes turned into numbers by the formulas of the format."""
    stored = load_file(folder / "model.safetensors")
    plain = {name: values.float() for name, values in stored.items() if values.is_floating_point()}
    plain = {
        name: values for name, values in plain.items() if not name.endswith((".SCB", ".absmax", ".quant_map"))
    }
    for name, codes in stored.items():
        if codes.dtype is torch.int8:
            plain[name] = codes * stored[name.replace(".weight", ".SCB")][:, None] / 127
        elif f"{name}.absmax" in stored:
            (state,) = (key for key in stored if key.startswith(f"{name}.quant_state"))
            shape = json.loads(bytes(stored[state].tolist()))["shape"]
            nibbles = torch.stack([codes >> 4, codes & 15], dim=-1).flatten().long()
            scales = stored[f"{name}.absmax"].repeat_interleave(64)[: len(nibbles)]
            plain[name] = (stored[f"{name}.quant_map"][nibbles] * scales).reshape(shape)
    output.mkdir()
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (output / "config.json").write_text(json.dumps(config))
    save_file({name: values.contiguous() for name, values in plain.items()}, output / "model.safetensors")
    return output


@pytest.mark.parametrize(
    ("pair", "precision"),
    [
        *((UNTIED, precision) for precision in PRECISIONS),
        (ODD, Precision.NF4),
        *itertools.product(FAMILY_PAIRS, [Precision.INT8, Precision.NF4]),
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_codes_mean_what_their_format_says(
    exported: Exported, tmp_path: Path, pair: RandomPair, precision: Precision
) -> None:
    """Nothing of bitsandbytes is in the truth: codes by hand, and for Qwen2 the models in float64.

    Measured 1.2e-4 at most; a wrong scale in a block gives 0.1 and more.
    """
    opened = exported(pair, precision)
    scores = open_engine(opened).logprobs(pair.sequences())
    truth = [
        logprobs(dequantised(opened.path / name, tmp_path / name), pair.sequences(), truth_of(pair))
        for name in ("policy", "reference")
    ]
    assert largest_error(scores, list(zip(*truth, strict=True))) <= 2e-4


@of_each_kind
def test_transformers_gives_the_same_of_the_same_folder(exported: Exported, precision: Precision) -> None:
    """With bitsandbytes' products that turn weights into floats, which are not its first choice.

    Where rows do not end with a block, it takes wrong scales on some CPUs: see torch_model.
    """
    pair = exported(WHOLE_BLOCKS, precision)
    folder = pair.path / "policy"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            module.train()
        elif isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    tokens = WHOLE_BLOCKS.sequences()
    settings = checked_config(pair.path, pair.manifest, pair.manifest.units[0])
    found = model_logprobs(Model(folder, Device.CPU, settings), tokens)
    with torch.inference_mode():
        for ids, ours in zip(map(torch.from_numpy, tokens), found, strict=True):
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
            theirs = logits.gather(1, ids[1:, None])[:, 0].numpy()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_fewer_bits_mean_a_larger_error(exported: Exported) -> None:
    selftests = [exported(UNTIED, precision).manifest.selftest for precision in PRECISIONS]
    errors = [selftest.hidden_error for selftest in selftests if selftest is not None]
    assert 1e-4 < errors[0] < errors[1] < errors[2]


# The laws


def test_identical_models_agree_to_the_bit(workshop: Workshop, tmp_path: Path) -> None:
    reference = workshop.models(TIED).reference
    pair = export(Models(reference, reference), tmp_path / "pair", Precision.NF4)
    policy, other = flat(open_engine(pair).logprobs(TIED.sequences()))
    assert np.array_equal(policy, other)


@of_each_kind
@few_examples
@given(batch=batches)
def test_batch_gives_each_sequence_its_log_probs_alone(
    engine: Callable[[Precision], Engine], precision: Precision, batch: list[Tokens]
) -> None:
    together = flat(engine(precision).logprobs(batch))
    alone = flat([engine(precision).logprobs([tokens])[0] for tokens in batch])
    assert np.abs(np.asarray(together) - np.asarray(alone)).max() <= 1e-5


@of_each_kind
@few_examples
@given(tokens=sequences, tail=batches)
def test_appended_tokens_keep_log_probs_of_the_prefix(
    engine: Callable[[Precision], Engine], precision: Precision, tokens: Tokens, tail: list[Tokens]
) -> None:
    longer = np.concatenate([tokens, tail[0]])
    for before, after in zip(
        *(engine(precision).logprobs([ids])[0] for ids in (tokens, longer)), strict=True
    ):
        assert np.abs(before - after[: len(before)]).max() <= 1e-5


def test_shared_prefix_is_computed_once(
    engine: Callable[[Precision], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = engine_path(engine)  # its export runs the engine too
    rows: list[int] = []
    product = torch_model._linear

    def counted(matrix: Any, module: Any, given: torch.Tensor) -> torch.Tensor:
        rows.append(given.shape[-2])
        return product(matrix, module, given)

    monkeypatch.setattr(torch_model, "_linear", counted)
    prefix = np.arange(40)
    batch = [np.concatenate([prefix, [end, end]]) for end in (50, 51, 52)]
    shared = open_engine(Pair.open(folder))
    shared.logprobs(batch)
    assert set(rows) == {40 + 3 * 2}


def engine_path(engine: Callable[[Precision], Engine]) -> Path:
    opened = engine(Precision.INT8)
    assert isinstance(opened, torch_engine.TorchEngine)
    return opened._folders[0][1].parent


def test_the_head_never_holds_all_tokens_and_the_vocabulary(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []
    linear = torch.nn.functional.linear

    def watched(*given: Any, **options: Any) -> torch.Tensor:
        output = linear(*given, **options)
        sizes.append(tuple(output.shape))
        return output

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    model_logprobs(plain_model(workshop.models(WIDE).policy), WIDE.sequences())
    wide = [shape for shape in sizes if shape[-1] > WIDE.shape.intermediate_size]
    assert max(shape[-2] for shape in wide) == 64
    assert max(shape[-1] for shape in wide) == TILE


@of_each_kind
def test_one_model_at_a_time_gives_the_same_bits(
    exported: Exported, engine: Callable[[Precision], Engine], precision: Precision
) -> None:
    alternating = open_engine(exported(UNTIED, precision), EngineOptions(residency=Residency.ALTERNATE))
    window = [pack([tokens], [0]) for tokens in UNTIED.sequences()]
    resident = engine(precision).run(window)
    for once, again in zip(alternating.run(window), resident, strict=True):
        assert np.array_equal(once["policy"], again["policy"])
        assert np.array_equal(once["reference"], again["reference"])


def test_stream_residency_is_rejected_by_name(exported: Exported) -> None:
    with pytest.raises(
        PairIncompatible, match="bitsandbytes pairs do not support --residency stream"
    ) as refused:
        open_engine(exported(UNTIED, Precision.NF4), EngineOptions(residency=Residency.STREAM))
    assert "alternate" in str(refused.value.hint)


# The export


@each_precision
def test_a_pair_is_two_folders_of_transformers(exported: Exported, precision: Precision) -> None:
    pair = exported(UNTIED, precision)
    pair.verify()
    assert sorted(pair.manifest.files) == [
        *("policy/config.json", "policy/model.safetensors"),
        *("reference/config.json", "reference/model.safetensors", "tokenizer.json"),
    ]
    assert sorted(path.name for path in (pair.path / "policy").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_the_same_export_twice_gives_the_same_folder(
    workshop: Workshop, exported: Exported, tmp_path: Path
) -> None:
    once = exported(UNTIED, Precision.NF4)
    again = export(workshop.models(UNTIED), tmp_path / "again", Precision.NF4)
    assert again.fingerprint == once.fingerprint


@each_precision
def test_the_weight_files_have_the_predicted_size(
    workshop: Workshop, exported: Exported, precision: Precision
) -> None:
    """Names, and tables of 16 numbers a matrix, are a larger part of tiny matrices than of real ones."""
    pair = exported(UNTIED, precision)
    with Checkpoint.open(workshop.models(UNTIED).policy) as checkpoint:
        predicted = weight_bytes(checkpoint, precision)
    assert 0.95 < predicted / pair.manifest.files["policy/model.safetensors"].size < 1


def test_wrong_codes_are_not_sealed(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = torch_model._eight_bits
    monkeypatch.setattr(torch_model, "_eight_bits", lambda *given: right(*given).flip(0))
    with pytest.raises(SelftestFailed, match="relative error"):
        export(workshop.models(TIED), tmp_path / "pair", Precision.INT8)
    assert list(tmp_path.iterdir()) == []


# Where it runs


def test_a_file_that_the_manifest_does_not_know_is_refused(exported: Exported, tmp_path: Path) -> None:
    """Transformers would load it in place of the weights that were checked."""
    path = shutil.copytree(exported(UNTIED, Precision.INT8).path, tmp_path / "pair")
    (path / "reference" / "adapter_config.json").write_text("{}")
    with pytest.raises(IntegrityMismatch, match=r"reference/adapter_config\.json is not in the manifest"):
        open_engine(Pair.open(path))


def test_a_model_type_of_another_structure_is_refused_before_it_is_allocated(
    exported: Exported, tmp_path: Path
) -> None:
    path = shutil.copytree(exported(UNTIED, Precision.INT8).path, tmp_path / "pair")
    edit_json(path / "policy" / "config.json", model_type="mixtral")
    rehash(path)
    with pytest.raises(ModelInvalid, match=r"model_type is 'mixtral', a model of [\d,]+ parameters; the man"):
        open_engine(Pair.open(path))


def test_kernels_that_do_not_work_are_named(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_given: Any, **_options: Any) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(bnb.functional, "quantize_4bit", broken)
    with pytest.raises(ProviderUnavailable, match=r"bitsandbytes 0\..* does not work here: no kernel"):
        open_engine(exported(UNTIED, Precision.INT8))


def test_auto_is_the_cpu_where_there_is_no_gpu(
    engine: Callable[[Precision], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = engine_path(engine)
    assert open_engine(Pair.open(path)).provider is Provider.CPU
    with pytest.raises(ProviderUnavailable, match="finds no CUDA device") as refused:
        open_engine(Pair.open(path), EngineOptions(provider=Provider.CUDA))
    assert refused.value.hint == "use --provider cpu or --provider auto"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@each_precision
def test_cuda_gives_the_numbers_of_the_cpu(exported: Exported, precision: Precision) -> None:
    pair = exported(UNTIED, precision)
    cpu, cuda = (
        flat(open_engine(pair, EngineOptions(provider=provider)).logprobs(UNTIED.sequences()))
        for provider in (Provider.CPU, Provider.CUDA)
    )
    assert np.abs(np.asarray(cpu) - np.asarray(cuda)).max() < 0.05
