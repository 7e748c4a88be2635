"""Two checkpoints -> one sealed pair: the main job of the export stage, in the order it happens."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec
import onnx_ir as ir
import onnxruntime as ort

from stepscore.artifact.graph_contract import PREFIX
from stepscore.artifact.manifest import (
    SCHEMA_VERSION,
    TOKENIZER,
    Manifest,
    Unit,
)
from stepscore.artifact.pair import Pair
from stepscore.artifact.prefix import Prefix
from stepscore.batching.given_rows import GivenRows
from stepscore.engine.ort.provider_checks import runs_here
from stepscore.engine.pytorch.engine import require_packages
from stepscore.enums import Activations, Coding, Exporter, Format, Target
from stepscore_export.backends.bitsandbytes import BLOCK_SIZE, write_model
from stepscore_export.backends.onnx import GRAPHS_HELD, Weights, graphs_of, unit_members, write_weights
from stepscore_export.backends.optimum import store_traced
from stepscore_export.backends.optimum_trace import PACKAGES, trace
from stepscore_export.checkpoint.chat_template import prompt_template
from stepscore_export.checkpoint.checkpoint import Checkpoint, Members, check_pair
from stepscore_export.checkpoint.distance import measure_distance
from stepscore_export.graphs.shape import graph_shape
from stepscore_export.options import BitsandbytesOptions, ExportOptions
from stepscore_export.pipeline.manifest import Facts, manifest_of, shared_architecture
from stepscore_export.pipeline.plan import check_settled, resolve_options
from stepscore_export.quantization.error_propagation import NoStatistics, Statistics
from stepscore_export.reference.calibration import MAX_TOKENS, Calibration
from stepscore_export.reference.prefix import model_prefix
from stepscore_export.staging import check_output, stage
from stepscore_export.validation.measure import FIDELITY_WORK, Progress, measure
from stepscore_export.validation.selftest import run_selftest
from stepscore_export.validation.texts import Texts, bundled_texts, encode_texts
from stepscore_export.weights.rotated_checkpoint import RotatedCheckpoint
from stepscore_export.weights.weight_file import WeightFile
from stepscore_export.weights.writer import store_unit


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
        options = resolve_options(options, distance)
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
            views: Members = checkpoints
            if options.rotated:
                views = {name: RotatedCheckpoint(each) for name, each in checkpoints.items()}
            prefix = None
            if options.prefix and options.exporter is Exporter.STEPSCORE:
                progress("running the template's prefix in fp32", 0)
                token_ids = encoder.prefix_ids()
                prefix = Prefix(
                    token_ids,
                    {name: model_prefix(each, token_ids, staged.folder) for name, each in views.items()},
                )
                staged.write(PREFIX, prefix.encode())
            statistics: Statistics = NoStatistics()
            if calibrated_on:
                sequences = [prompt.token_ids for prompt in calibrated_on]
                given = prefix and (GivenRows(prefix.token_ids), prefix.models["reference"])
                statistics = Calibration(
                    views["reference"], sequences, staged.folder, options.block_size, given
                )

            def store(members: Members, name: str) -> Callable[[WeightFile], Weights]:
                advance = partial(progress, name)
                if options.exporter is Exporter.OPTIMUM:
                    return lambda file: store_traced(members, file, options, advance)
                return lambda file: store_unit(members, file, options, advance, statistics)

            units = {
                folder: (members, write_weights(staged, folder, store(members, name=folder)))
                for folder, members in unit_members(views, options).items()
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
                return manifest_of(
                    facts, of, stored, staged.files, 0 if prefix is None else len(prefix.token_ids)
                )

            runnable = options if runs_here(options.target) else replace(options, target=Target.CPU)
            staged.write_manifest(write_graphs(runnable))
            gc.collect()
            progress("comparing the staged pair with numpy", 0)
            selftest = run_selftest(Pair.open(staged.folder), checkpoints, views)
            measured = measure(staged, checkpoints, texts.name, prompts, progress)
            staged.seal(msgspec.structs.replace(write_graphs(options), selftest=selftest, fidelity=measured))
    return Pair.open(target)


def export_bitsandbytes(
    policy: str | Path,
    reference: str | Path,
    output: str | Path,
    options: BitsandbytesOptions | None = None,
    *,
    texts: Texts | None = None,
    force: bool = False,
    progress: Progress = lambda _what, _parameters: None,
) -> Pair:
    """Write the pair of `policy` and `reference` to the folder `output` and return it, opened.

    As export_pair does, but a model is loaded whole, quantised on the way, and saved by transformers.
    Raises ExportError, OutputError, PairIncompatible or ProviderUnavailable and leaves nothing behind.
    """
    options = options or BitsandbytesOptions()
    target = Path(output)
    check_output(target, force=force)
    require_packages()
    with Checkpoint.open(policy) as policy_model, Checkpoint.open(reference) as reference_model:
        check_pair(policy_model, reference_model)
        checkpoints: Members = {"policy": policy_model, "reference": reference_model}
        distance = measure_distance(policy_model, reference_model)
        template, encoder = prompt_template(policy_model)
        texts = texts or bundled_texts()
        prompts = encode_texts(texts, encoder)
        with stage(target, force=force) as staged:
            for name, checkpoint in checkpoints.items():
                progress(f"quantising the {name}", 0)
                write_model(staged, name, checkpoint, options.precision)
                progress(f"quantising the {name}", checkpoint.parameters())
            staged.write(TOKENIZER, policy_model.tokenizer_json().encode())
            manifest = Manifest(
                schema_version=SCHEMA_VERSION,
                policy=policy_model.source,
                reference=reference_model.source,
                architecture=shared_architecture(policy_model.config, reference_model.config),
                format=Format.BITSANDBYTES,
                exporter=Exporter.STEPSCORE,
                precision=options.precision,
                block_size=BLOCK_SIZE,
                target=None,
                coding=Coding.INDEPENDENT,
                difference=None,
                distance=distance,
                beta=options.beta,
                template=template,
                prefix_tokens=0,
                units=tuple(Unit(name, (name,), {}) for name in checkpoints),
                selftest=None,
                fidelity=None,
                versions={name: version(name) for name in ("stepscore", *PACKAGES)}
                | {"onnxruntime": ort.__version__},
                files=dict(sorted(staged.files.items())),
            )
            staged.write_manifest(manifest)
            progress("comparing the staged pair with numpy", 0)
            selftest = run_selftest(Pair.open(staged.folder), checkpoints, checkpoints)
            measured = measure(staged, checkpoints, texts.name, prompts, progress)
            staged.seal(msgspec.structs.replace(manifest, selftest=selftest, fidelity=measured))
    return Pair.open(target)
