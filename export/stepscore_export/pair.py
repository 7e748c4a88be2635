"""Two checkpoints -> one sealed pair: the main job of the export stage, in the order it happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from stepscore.artifact import (
    SCHEMA_VERSION,
    TOKENIZER,
    Architecture,
    FileEntry,
    Manifest,
    ModelName,
    Pair,
    Selftest,
    Unit,
    layer_file,
)
from stepscore.choices import Target
from stepscore.errors import ManifestInvalid, UnsupportedArchitecture
from stepscore.prompt import PromptEncoder, Template
from stepscore.provider import runs_here
from stepscore_export.builder import WEIGHTS
from stepscore_export.checkpoint import Checkpoint, check_pair
from stepscore_export.config import Qwen2Config
from stepscore_export.errors import unwritable
from stepscore_export.graph import body_graph, embed_graph, head_graph, layer_graph
from stepscore_export.layout import ModelWeights, Shape
from stepscore_export.model import graph_shape, store_model
from stepscore_export.options import ExportOptions
from stepscore_export.seal import Stage, check_output, stage
from stepscore_export.selftest import run_selftest
from stepscore_export.template import literals
from stepscore_export.weights import WeightFile

Progress = Callable[[str, int], None]
"""Called with what is being done and the number of parameters done since the last call."""


def export_pair(
    policy: str | Path,
    reference: str | Path,
    output: str | Path,
    options: ExportOptions | None = None,
    *,
    force: bool = False,
    progress: Progress = lambda _what, _parameters: None,
) -> Pair:
    """Write the pair of `policy` and `reference` to the folder `output` and return it, opened.

    Both are Hugging Face folders or `id@revision`. `force` replaces a pair that is there; until the last
    moment it stays as it is. Raises ExportError, OutputError or PairIncompatible and leaves nothing behind.
    """
    options = options or ExportOptions()
    target = Path(output)
    check_output(target, force=force)
    with Checkpoint.open(policy) as policy_model, Checkpoint.open(reference) as reference_model:
        check_pair(policy_model, reference_model)
        template = prompt_template(policy_model)
        checkpoints: dict[ModelName, Checkpoint] = {"policy": policy_model, "reference": reference_model}
        with stage(target, force=force) as staged:
            weights = {
                name: _write_weights(staged, name, checkpoint, options, progress)
                for name, checkpoint in checkpoints.items()
            }
            staged.write(TOKENIZER, policy_model.tokenizer_json().encode())

            def write_graphs(of: ExportOptions, selftest: Selftest | None) -> Manifest:
                for name, checkpoint in checkpoints.items():
                    _write_graphs(staged, name, weights[name], graph_shape(checkpoint.config, of))
                return _manifest(checkpoints, template, of, staged.files, selftest)

            progress("comparing the staged pair with numpy", 0)
            runnable = options if runs_here(options.target) else replace(options, target=Target.CPU)
            staged.write_manifest(write_graphs(runnable, None))
            selftest = run_selftest(Pair.open(staged.folder), checkpoints)
            staged.seal(write_graphs(options, selftest))
    return Pair.open(target)


def prompt_template(policy: Checkpoint) -> Template:
    """Return the chat template as literals; UnsupportedArchitecture where the runtime could not use them."""
    template = literals(policy.chat_template())
    try:
        PromptEncoder(policy.tokenizer_json(), template, max_tokens=policy.config.max_position_embeddings)
    except ManifestInvalid as error:
        raise UnsupportedArchitecture(f"the chat template cannot be encoded: {error.message}") from None
    return template


def _write_weights(
    staged: Stage, name: ModelName, checkpoint: Checkpoint, options: ExportOptions, progress: Progress
) -> ModelWeights:
    folder = staged.folder / name
    with unwritable(folder):
        folder.mkdir()
    with WeightFile(folder / WEIGHTS) as file:
        weights = store_model(checkpoint, file, options, lambda count: progress(name, count))
        staged.files[f"{name}/{WEIGHTS}"] = file.close()
    return weights


def _write_graphs(staged: Stage, name: ModelName, weights: ModelWeights, shape: Shape) -> None:
    def write(graph_name: str, model: ir.Model) -> None:
        staged.write(f"{name}/{graph_name}", ir.to_proto(model).SerializeToString(deterministic=True))

    write("embed.onnx", embed_graph(weights, shape))
    write("body.onnx", body_graph(weights, shape))
    for index in range(len(weights.layers)):
        write(layer_file(index), layer_graph(weights, shape, index))
    write("head.onnx", head_graph(weights, shape))


def _manifest(
    checkpoints: dict[ModelName, Checkpoint],
    template: Template,
    options: ExportOptions,
    files: dict[str, FileEntry],
    selftest: Selftest | None,
) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        policy=checkpoints["policy"].source,
        reference=checkpoints["reference"].source,
        architecture=_architecture(*(checkpoint.config for checkpoint in checkpoints.values())),
        precision=options.precision,
        block_size=options.block_size,
        target=options.target,
        coding="independent",
        beta=options.beta,
        template=template,
        units=(Unit("policy", ("policy",)), Unit("reference", ("reference",))),
        selftest=selftest,
        versions={  # the package of onnxruntime has two names: onnxruntime and onnxruntime-gpu
            **{name: version(name) for name in ("stepscore", "onnx-ir")},
            "onnxruntime": ort.__version__,
        },
        files=dict(sorted(files.items())),
    )


def _architecture(policy: Qwen2Config, reference: Qwen2Config) -> Architecture:
    shared = {key: getattr(policy, key) for key in Architecture.__struct_fields__}
    positions = min(policy.max_position_embeddings, reference.max_position_embeddings)
    return Architecture(**shared | {"max_position_embeddings": positions})
