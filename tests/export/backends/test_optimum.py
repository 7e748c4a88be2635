"""The second way in: transformers' own code, traced, between the plan's inputs and our head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from testing.checkpoints import TINY, write_checkpoint
from testing.optimum_pairs import TRACED
from testing.pairs import Checkpoints, PairOf, export_unmeasured

from stepscore.artifact.graph_contract import BODY, EMBED, HEAD, WEIGHTS
from stepscore.artifact.manifest import TOKENIZER
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import pack
from stepscore.cli.main import main
from stepscore.engine.ort.engine import EngineOptions, OrtEngine
from stepscore.engine.ort.provider_checks import resolve
from stepscore.enums import Exporter, Precision, Provider, Residency, Target
from stepscore.errors import ExportError, PairIncompatible
from stepscore.memory.fit import fit_settings
from stepscore.memory.settings import residencies
from stepscore.scorer import Scorer
from stepscore_export.backends import optimum as backend_module
from stepscore_export.backends import optimum_trace as trace_module
from stepscore_export.backends.optimum import OptimumBackend
from stepscore_export.backends.optimum_body import body_of
from stepscore_export.backends.optimum_trace import trace
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.families.rope import DefaultRope
from stepscore_export.graphs.shape import graph_shape
from stepscore_export.pipeline.plan import open_plan
from stepscore_export.quantization.error_propagation import NoStatistics
from stepscore_export.weights.weight_file import SizeOnly

pytestmark = pytest.mark.optimum
FLOATS = (Precision.FP32, Precision.FP16, Precision.BF16)
RECORDS = [
    {"problem": "Ann has 3 bags of 4 pens.", "steps": ["3 * 4 = 12.", "So 12."]},
    {"problem": "Ann has 3 bags of 4 pens.", "steps": ["3 * 4 = 12.", "So 13, as 12 + 1 is 13.", "13"]},
    {"problem": "1 + 1?", "steps": ["2"]},
]


@pytest.fixture(scope="session")
def traced_pair(pair_of: PairOf) -> Path:
    """The tiny pair at fp32; tracing takes seconds, so it is made once."""
    return pair_of(exporter=Exporter.OPTIMUM)


def graphs(pair: Path) -> list[onnx.ModelProto]:
    return [onnx.load(path, load_external_data=False) for path in sorted(pair.glob("*/*.onnx"))]


# A pair like any other


@pytest.mark.parametrize("precision", FLOATS)
def test_every_graph_has_standard_operators_only(pair_of: PairOf, precision: Precision) -> None:
    pair = pair_of(precision, exporter=Exporter.OPTIMUM)
    found = graphs(pair)
    assert len(found) == 6
    for path in sorted(pair.glob("*/*.onnx")):
        onnx.checker.check_model(path)
    for model in found:
        assert [opset.domain for opset in model.opset_import] == [""]
        assert {node.domain for node in model.graph.node} == {""}
        assert not model.functions


def test_graphs_hold_no_weights(traced_pair: Path) -> None:
    for model in graphs(traced_pair):
        assert all(sum(tensor.dims) < 8 for tensor in model.graph.initializer if not tensor.external_data)
        assert model.ByteSize() < 300_000


def test_a_pair_lists_one_body_and_no_layers(traced_pair: Path) -> None:
    pair = Pair.open(traced_pair)
    names = [WEIGHTS, EMBED, BODY, HEAD]
    expected = {TOKENIZER, *(f"{unit}/{name}" for unit in ("policy", "reference") for name in names)}
    assert set(pair.manifest.files) == expected
    assert pair.manifest.exporter is Exporter.OPTIMUM
    assert {"optimum-onnx", "torch", "transformers"} < set(pair.manifest.versions)
    pair.verify()


@pytest.mark.parametrize("precision", FLOATS)
def test_traced_pair_is_tested_and_measured_before_sealing(pair_of: PairOf, precision: Precision) -> None:
    manifest = Pair.open(pair_of.measured(precision, exporter=Exporter.OPTIMUM)).manifest
    ours = Pair.open(pair_of(precision, prefix=False)).manifest
    assert manifest.selftest is not None
    assert ours.selftest is not None
    assert manifest.fidelity is not None
    assert manifest.selftest.logprob_error == pytest.approx(ours.selftest.logprob_error, rel=0.05, abs=1e-5)


def test_the_same_command_twice_gives_the_same_folder(
    traced_pair: Path, tiny_checkpoints: Checkpoints, tmp_path: Path
) -> None:
    trace_module._traced.cache_clear()
    again = export_unmeasured(tiny_checkpoints.policy, tiny_checkpoints.reference, tmp_path / "pair", TRACED)
    assert again.fingerprint == Pair.open(traced_pair).fingerprint


@pytest.mark.parametrize("residency", [Residency.RESIDENT, Residency.ALTERNATE])
@pytest.mark.parametrize("share", [True, False])
def test_traced_pair_scores_as_a_stepscore_export(
    traced_pair: Path, tiny_pair: Path, residency: Residency, share: bool
) -> None:
    """Padding, shared prefixes and a lonely short sequence: the same rewards."""
    results = []
    for path in (traced_pair, tiny_pair):
        with Scorer.load(path, residency=residency, beta=1.0, share=share) as scorer:
            results.append(scorer.score(RECORDS))
    for traced, ours in zip(*results, strict=True):
        np.testing.assert_allclose(traced.cumulative_rewards, ours.cumulative_rewards, rtol=0, atol=2e-4)


def test_batch_changes_no_log_prob_beyond_rounding(traced_pair: Path) -> None:
    random = np.random.default_rng(3)
    sequences = [random.integers(0, TINY.vocab_size, length) for length in (2, 90, 31)]
    engine = OrtEngine(Pair.open(traced_pair))
    together = engine.logprobs(sequences)
    for sequence, both in zip(sequences, together, strict=True):
        np.testing.assert_allclose(both, engine.logprobs([sequence])[0], rtol=0, atol=1e-5)


def test_hidden_rows_are_those_of_scored_tokens(traced_pair: Path) -> None:
    batch = pack([np.arange(9), np.arange(5)], [3, 1])
    hidden, _ = OrtEngine(Pair.open(traced_pair)).trace(batch)
    assert hidden["policy"].shape == (len(batch.score_index), TINY.hidden_size)


# What it runs as


def test_traced_pair_cannot_be_streamed_and_auto_never_does(traced_pair: Path) -> None:
    pair = Pair.open(traced_pair)
    assert residencies(pair.manifest) == [Residency.RESIDENT, Residency.ALTERNATE]
    for ask in (
        lambda: fit_settings(pair.manifest, residency=Residency.STREAM),
        lambda: OrtEngine(pair, EngineOptions(residency=Residency.STREAM)),
    ):
        with pytest.raises(
            PairIncompatible, match="optimum pairs do not support --residency stream"
        ) as refused:
            ask()
        assert refused.value.hint == "use --residency alternate, which holds one model at a time"


def test_traced_pair_runs_on_any_provider_and_auto_is_its_target(pair_of: PairOf) -> None:
    pair = Pair.open(pair_of(Precision.FP32, Target.CUDA, exporter=Exporter.OPTIMUM))
    assert resolve(Provider.AUTO, pair.manifest.target, portable=True) is Provider.CUDA
    assert OrtEngine(pair, EngineOptions(provider=Provider.CPU)).provider is Provider.CPU


def test_inspect_shows_the_exporter(traced_pair: Path) -> None:
    shown = CliRunner().invoke(main, ["inspect", str(traced_pair)]).stdout
    assert "exporter      optimum" in shown
    assert "stream" not in shown


# What an export needs


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_the_weight_file_has_the_predicted_size(
    pair_of: PairOf, tiny_checkpoints: Checkpoints, precision: Precision
) -> None:
    pair = Pair.open(pair_of(precision, exporter=Exporter.OPTIMUM))
    models = tiny_checkpoints.policy, tiny_checkpoints.reference
    with open_plan(*models, replace(TRACED, precision=precision)) as plan:
        needs = plan.needs
    assert needs.weight_bytes == {
        unit: pair.manifest.files[f"{unit}/{WEIGHTS}"].size for unit in ("policy", "reference")
    }


def test_dry_run_estimates_memory_without_tracing(
    tiny_checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "trace", lambda _checkpoint: pytest.fail("was traced"))
    result = export("--dry-run", models=tiny_checkpoints, output=tmp_path / "pair")
    assert result.exit_code == 0, result.stderr
    assert "fp32, traced by optimum" in result.stdout
    assert "memory       about " in result.stdout
    assert not (tmp_path / "pair").exists()


# What is refused


def export(*arguments: str, models: Checkpoints, output: Path) -> Any:
    names = ["--policy", str(models.policy), "--reference", str(models.reference), "--output", str(output)]
    return CliRunner().invoke(main, ["export", *names, "--exporter", "optimum", *arguments])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--precision", "int8"], "--precision int8"),
        (["--precision", "int4"], "--precision int4"),
        (["--coding", "difference"], "--coding difference"),
        (["--difference-precision", "int4"], "--difference-precision"),
        (["--activations", "int8"], "--activations int8"),
        (["--products", "merged"], "--products"),
        (["--block-size", "64"], "--block-size"),
        (["--calibration", "pyproject.toml"], ""),
    ],
)
def test_options_of_the_other_exporter_are_refused_by_name(
    tiny_checkpoints: Checkpoints, tmp_path: Path, arguments: list[str], named: str
) -> None:
    if arguments[0] == "--calibration":
        texts = tmp_path / "texts.jsonl"
        texts.write_text('{"problem": "1 + 1?", "steps": ["2"]}\n')
        arguments, named = ["--calibration", str(texts)], "--calibration"
    result = export(*arguments, models=tiny_checkpoints, output=tmp_path / "pair")
    assert result.exit_code == 3
    assert f"error: {named} is not supported with --exporter optimum\n" in result.stderr
    assert "hint: it stores each model alone" in result.stderr


def without(names: str) -> Callable[[ir.Graph], None]:
    def change(graph: ir.Graph) -> None:
        graph.inputs[:] = [value for value in graph.inputs if value.name != names]

    return change


def renamed_output(graph: ir.Graph) -> None:
    graph.outputs[0].name = "scores"


def another_product(graph: ir.Graph) -> None:
    graph.outputs[0].name = "scores"
    graph.outputs[0] = next(node for node in graph if node.op_type == "Sigmoid").outputs[0]
    graph.outputs[0].name = "logits"


def ids_used_twice(graph: ir.Graph) -> None:
    ids = graph.inputs[0]
    graph.append(ir.Node("", "Identity", [ids]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("position_ids"), "has the inputs input_ids, attention_mask, model.embed_tokens.weight"),
        (renamed_output, "and the outputs scores"),
        (without("model.norm.weight"), "has no parameter model.norm.weight"),
        (another_product, "computes its logits with Sigmoid, expected MatMul"),
        (ids_used_twice, "uses input_ids in Gather, Identity, expected one Gather"),
    ],
)
def test_unknown_trace_is_rejected_and_leaves_nothing(
    tiny_checkpoints: Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[ir.Graph], None],
    message: str,
) -> None:
    def changed(checkpoint: Checkpoint) -> bytes:
        model = ir.from_proto(onnx.load_model_from_string(trace(checkpoint)))
        change(model.graph)
        return ir.to_proto(model).SerializeToString()

    monkeypatch.setattr(backend_module, "trace", changed)
    with pytest.raises(ExportError, match="^the traced graph .*" + message):
        export_unmeasured(tiny_checkpoints.policy, tiny_checkpoints.reference, tmp_path / "pair", TRACED)
    assert list(tmp_path.iterdir()) == []


def test_untraceable_code_is_an_export_error(
    tiny_checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_model: object) -> bytes:
        raise RuntimeError("no symbolic for aten::new\nand so on")

    trace_module._traced.cache_clear()
    monkeypatch.setattr(trace_module, "_export", fails)
    with pytest.raises(ExportError, match=r"cannot be traced: no symbolic for aten::new$"):
        export_unmeasured(tiny_checkpoints.policy, tiny_checkpoints.reference, tmp_path / "pair", TRACED)
    assert list(tmp_path.iterdir()) == []


# What a checkpoint says of itself


def test_models_of_other_constants_are_traced_on_their_own(tmp_path: Path) -> None:
    """rope_theta and rms_norm_eps may differ; transformers 5 writes the first in another place."""
    folders = [
        write_checkpoint(
            tmp_path / name, replace(TINY, num_hidden_layers=1, **constants), seed=1, layout=layout
        )
        for name, constants, layout in (
            ("policy", {"rope": DefaultRope(500.0)}, 5),
            ("reference", {"rms_norm_eps": 1e-2}, 4),
        )
    ]
    pair = export_unmeasured(*folders, tmp_path / "pair", TRACED)
    assert pair.manifest.selftest is not None
    assert pair.manifest.selftest.logprob_error < 1e-4


def test_a_head_name_is_no_part_of_the_body(tiny_checkpoints: Checkpoints) -> None:
    with Checkpoint.open(tiny_checkpoints.policy) as policy:
        backend = OptimumBackend(TRACED)
        weights = backend.write_unit({"policy": policy}, SizeOnly(), NoStatistics(), lambda _count: None)
        body = body_of(trace(policy), weights.layers, graph_shape({"policy": policy}, TRACED))
    names = set(body.graph.initializers)
    assert {"model.norm.weight", "model.layers.1.mlp.down_proj.weight"} < names
    assert names.isdisjoint({"model.embed_tokens.weight", "lm_head.weight"})
