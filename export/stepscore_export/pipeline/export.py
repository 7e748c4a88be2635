"""Two checkpoints -> one sealed pair: the main job of the export stage, in the order it happens."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec
import onnx_ir as ir
import onnxruntime as ort

from stepscore.artifact.manifest import (
    BODY,
    EMBED,
    HEAD,
    SCHEMA_VERSION,
    TOKENIZER,
    WEIGHTS,
    Architecture,
    Difference,
    Distance,
    Fidelity,
    FileEntry,
    Manifest,
    Unit,
    layer_file,
    unsigned_file,
)
from stepscore.artifact.pair import Pair
from stepscore.engine.ort.sessions import give_back_memory, needs_unsigned_weights, runs_here
from stepscore.enums import Activations, Coding, Exporter, Format, Products, Target
from stepscore.errors import ExportError, ManifestInvalid, UnsupportedArchitecture
from stepscore.prompt.encoder import EncodedPrompt, PromptEncoder, Template
from stepscore_export.backends.optimum import TracedWeights, store_traced, traced_graphs
from stepscore_export.backends.optimum_trace import PACKAGES, require_optimum, trace
from stepscore_export.checkpoint.chat_template import literals
from stepscore_export.checkpoint.checkpoint import Checkpoint, check_pair
from stepscore_export.errors import unwritable
from stepscore_export.families.qwen2 import Qwen2Config
from stepscore_export.graphs.decoder import body_graph, embed_graph, layer_graph
from stepscore_export.graphs.head import head_graph
from stepscore_export.options import OPTIMUM_HINT, ExportOptions
from stepscore_export.quantization.coding import choose_coding, choose_difference_precision, measure_distance
from stepscore_export.quantization.error_propagation import NoStatistics, Statistics
from stepscore_export.reference.calibration import MAX_TOKENS, Calibration
from stepscore_export.reference.layerwise_fp32 import exact_logprobs
from stepscore_export.staging import Stage, check_output, stage
from stepscore_export.validation.measure import Trial
from stepscore_export.validation.selftest import run_selftest
from stepscore_export.validation.texts import Texts, bundled_texts, encode_texts
from stepscore_export.weights.layout import Shape, UnitWeights, head_parts
from stepscore_export.weights.weight_file import WeightFile
from stepscore_export.weights.writer import Members, graph_shape, store_unit

Weights = UnitWeights | TracedWeights

FIDELITY_WORK = 12 * 10**12
"""Parameters times tokens of the bundled texts that a pair is measured on: of two 7.6B models the first half
of these texts, ten minutes on two cores; of models up to 3B all. A user's own text is read to its end."""

GRAPHS_HELD = 16
"""So many graphs are written before they are let go of: a search for cycles takes a while."""

Progress = Callable[[str, int], None]
"""Called with what is being done and the number of parameters done since the last call."""


def export_pair(
    policy: str | Path,
    reference: str | Path,
    output: str | Path,
    options: ExportOptions | None = None,
    *,
    texts: Texts | None = None,
    calibration: Texts | None = None,
    force: bool = False,
    progress: Progress = lambda _what, _parameters: None,
) -> Pair:
    """Write the pair of `policy` and `reference` to the folder `output` and return it, opened.

    Both are Hugging Face folders or `id@revision`. The pair's fidelity is measured on `texts`, or on those
    that come with stepscore; with `calibration` the base of a coded pair is rounded for the rows that these
    texts give. `force` replaces a pair that is there; until the last moment it stays as it is.
    Raises ExportError, OutputError or PairIncompatible and leaves nothing behind.
    """
    options = options or ExportOptions()
    target = Path(output)
    check_output(target, force=force)
    with Checkpoint.open(policy) as policy_model, Checkpoint.open(reference) as reference_model:
        check_pair(policy_model, reference_model)
        checkpoints: Members = {"policy": policy_model, "reference": reference_model}
        distance = measure_distance(policy_model, reference_model)
        template, encoder = prompt_template(policy_model)
        facts = Facts(checkpoints, template, distance, None if calibration is None else calibration.name)
        options = settle(options, distance)
        check_settled(options, calibration)
        texts = texts or bundled_texts()
        work = FIDELITY_WORK // sum(model.parameters() for model in checkpoints.values())
        prompts = encode_texts(texts, encoder, None if texts.path else work)
        calibrated_on = [] if calibration is None else encode_texts(calibration, encoder, MAX_TOKENS)
        if options.exporter is Exporter.OPTIMUM:
            progress("tracing the modelling code", 0)
            for checkpoint in checkpoints.values():
                trace(checkpoint)  # is kept: what cannot be traced is said before anything is written
        with stage(target, force=force) as staged:
            statistics: Statistics = NoStatistics()
            if calibrated_on:
                sequences = [prompt.token_ids for prompt in calibrated_on]
                statistics = Calibration(reference_model, sequences, staged.folder, options.block_size)

            def store(members: Members, name: str) -> Callable[[WeightFile], Weights]:
                advance = partial(progress, name)
                if options.exporter is Exporter.OPTIMUM:
                    return lambda file: store_traced(members, file, options, advance)
                return lambda file: store_unit(members, file, options, advance, statistics)

            units = {
                folder: (members, _write_weights(staged, folder, store(members, name=folder)))
                for folder, members in unit_members(checkpoints, options).items()
            }
            staged.write(TOKENIZER, policy_model.tokenizer_json().encode())

            def write_graphs(of: ExportOptions) -> Manifest:
                for folder, (members, weights) in units.items():
                    shape, integers = graph_shape(members, of), of.activations is Activations.INT8
                    graphs = enumerate(graphs_of(members, weights, shape, integers=integers), start=1)
                    for count, (name, model) in graphs:
                        proto = ir.to_proto(model).SerializeToString(deterministic=True)
                        staged.write(f"{folder}/{name}", proto)
                        del model, proto
                        if count % GRAPHS_HELD == 0:
                            gc.collect()  # a graph is full of cycles
                stored = tuple(
                    Unit(folder, tuple(members), weights.extents())
                    for folder, (members, weights) in units.items()
                )
                return manifest_of(facts, of, stored, staged.files)

            runnable = options if runs_here(options.target) else replace(options, target=Target.CPU)
            staged.write_manifest(write_graphs(runnable))
            gc.collect()
            progress("comparing the staged pair with numpy", 0)
            selftest = run_selftest(Pair.open(staged.folder), checkpoints)
            measured = measure(staged, checkpoints, texts.name, prompts, progress)
            staged.seal(msgspec.structs.replace(write_graphs(options), selftest=selftest, fidelity=measured))
    return Pair.open(target)


def settle(options: ExportOptions, distance: Distance) -> ExportOptions:
    """Return the options with every choice made that was left to us."""
    if choose_coding(options, distance) is Coding.DIFFERENCE:
        products = Products.MERGED if options.merged else Products.SEPARATE
        return replace(
            options,
            coding=Coding.DIFFERENCE,
            difference_precision=choose_difference_precision(options, distance),
            activations=Activations.INT8 if options.integer_products else Activations.EXACT,
            products=None if options.integer_products else products,
        )
    return replace(
        options,
        coding=Coding.INDEPENDENT,
        difference_precision=None,
        activations=Activations.EXACT,
        products=None,
    )


def check_settled(options: ExportOptions, calibration: Texts | None) -> None:
    """Refuse, before anything is written, what could not be run at the end or has no base to calibrate."""
    if options.activations is Activations.INT8:
        needs_unsigned_weights()
    if options.exporter is Exporter.OPTIMUM:
        require_optimum()
        if calibration is not None:
            raise ExportError("--exporter optimum has no --calibration", hint=OPTIMUM_HINT)
    if calibration is not None and options.coding is Coding.INDEPENDENT:
        raise ExportError(
            "only the base of a coded pair is calibrated, and this pair is not coded",
            hint="drop --calibration, or take --coding difference with --precision int8 or int4",
        )


def unit_members(checkpoints: Members, options: ExportOptions) -> dict[str, Members]:
    """Return which models share a weight file, by its folder."""
    if options.coding is Coding.DIFFERENCE:
        return {"both": {name: checkpoints[name] for name in ("reference", "policy")}}
    return {name: {name: checkpoint} for name, checkpoint in checkpoints.items()}


def prompt_template(policy: Checkpoint) -> tuple[Template, PromptEncoder]:
    """Return the chat template as literals, and the runtime's encoder of them.

    Raises UnsupportedArchitecture where the runtime could not use them.
    """
    template, limit = literals(policy.chat_template()), policy.config.max_position_embeddings
    try:
        return template, PromptEncoder(policy.tokenizer_json(), template, max_tokens=limit)
    except ManifestInvalid as error:
        raise UnsupportedArchitecture(f"the chat template cannot be encoded: {error.message}") from None


def measure(
    staged: Stage, checkpoints: Members, name: str, prompts: list[EncodedPrompt], progress: Progress
) -> Fidelity | None:
    """Run the checkpoints and the staged pair on the texts; None where no bundled text fits the model."""
    if not prompts:
        return None
    progress("running both checkpoints in fp32", 0)
    sequences = [prompt.token_ids for prompt in prompts]
    truth = exact_logprobs(checkpoints["policy"], checkpoints["reference"], sequences, staged.folder)
    progress("measuring the fidelity of the pair", 0)
    give_back_memory()
    return Trial(name, prompts, truth).judge(Pair.open(staged.folder))


def _write_weights(staged: Stage, name: str, store: Callable[[WeightFile], Weights]) -> Weights:
    folder = staged.folder / name
    with unwritable(folder):
        folder.mkdir()
    with WeightFile(folder / WEIGHTS) as file:
        weights = store(file)
        staged.files[f"{name}/{WEIGHTS}"] = file.close()
    return weights


def graphs_of(
    members: Members, weights: Weights, shape: Shape, *, integers: bool
) -> Iterator[tuple[str, ir.Model]]:
    """Give the graphs of a unit by the names of their files; `integers`: those of unsigned weights too."""
    if isinstance(weights, TracedWeights):
        (checkpoint,) = members.values()
        yield from traced_graphs(weights, trace(checkpoint), shape)
        return
    yield EMBED, embed_graph(weights.embedding, shape)
    yield from _product_graphs(weights, shape)
    if integers:
        for name, model in _product_graphs(weights, replace(shape, unsigned=True)):
            yield unsigned_file(name), model


def _product_graphs(weights: UnitWeights, shape: Shape) -> Iterator[tuple[str, ir.Model]]:
    yield BODY, body_graph(weights, shape)
    last = len(weights.layers) - 1
    for index, layer in enumerate(weights.layers):
        norm = weights.norm if index == last else None
        yield layer_file(index), layer_graph(layer, weights.rotary, shape, index, norm)
    yield HEAD, head_graph(weights.head, shape)
    for part, tiles in head_parts(weights.head).items():
        yield part, head_graph(tiles, shape)


@dataclass(frozen=True, slots=True)
class Facts:
    """What an export knows before it writes anything."""

    checkpoints: Members
    template: Template
    distance: Distance
    calibration: str | None


def manifest_of(
    facts: Facts, options: ExportOptions, units: tuple[Unit, ...], files: dict[str, FileEntry]
) -> Manifest:
    """Return the manifest of these units and files, not checked and not measured yet."""
    checkpoints = facts.checkpoints
    return Manifest(
        schema_version=SCHEMA_VERSION,
        policy=checkpoints["policy"].source,
        reference=checkpoints["reference"].source,
        architecture=shared_architecture(*(checkpoint.config for checkpoint in checkpoints.values())),
        format=Format.ONNX,
        exporter=options.exporter,
        precision=options.precision,
        block_size=options.block_size,
        target=options.target,
        coding=options.coding,
        difference=_difference(options, facts.calibration),
        distance=facts.distance,
        beta=options.beta,
        template=facts.template,
        units=units,
        selftest=None,
        fidelity=None,
        versions={  # the package of onnxruntime has two names: onnxruntime and onnxruntime-gpu
            **{name: version(name) for name in ("stepscore", "onnx-ir")},
            "onnxruntime": ort.__version__,
            **({name: version(name) for name in PACKAGES} if options.exporter is Exporter.OPTIMUM else {}),
        },
        files=dict(sorted(files.items())),
    )


def _difference(options: ExportOptions, calibration: str | None) -> Difference | None:
    if options.difference_precision is None:
        return None
    activations = options.activations or Activations.EXACT
    return Difference(options.difference_precision, activations, options.products, calibration)


def shared_architecture(policy: Qwen2Config, reference: Qwen2Config) -> Architecture:
    """Return the shape of both, and the positions that both have."""
    shared = {key: getattr(policy, key) for key in Architecture.__struct_fields__}
    positions = min(policy.max_position_embeddings, reference.max_position_embeddings)
    return Architecture(**shared | {"max_position_embeddings": positions})
