"""Traces transformers' own modelling code into an ONNX graph: token ids, mask, positions -> logits.

optimum-onnx provides example inputs and patches what a tracer cannot follow; torch's tracer records the
operators. No weights are loaded for that: parameters are memory that was never written, and become inputs of
the graph under their own names. torch, transformers and optimum are imported when needed.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from stepscore.engine.pytorch.loading import configuration
from stepscore.errors import ExportError, ProviderUnavailable
from stepscore_export.checkpoint.weight_source import WeightSource
from stepscore_export.families.transformers_settings import transformers_settings

INPUTS = ("input_ids", "attention_mask", "position_ids")
OUTPUT = "logits"
PACKAGES = ("optimum-onnx", "torch", "transformers")
OPSET = 18
TOO_NEW = (4, 58)
"""First version of transformers that optimum-onnx does not support."""
TRACED_VOCABULARY = 16
"""Vocabulary while the code is traced: embedding and head are not in the graph that is kept."""


def require_optimum() -> None:
    """Raise ProviderUnavailable where the modelling code cannot be traced, naming what to install."""
    try:
        found = {name: version(name) for name in PACKAGES}
    except PackageNotFoundError as error:
        raise ProviderUnavailable(
            f"{error.name} is not installed", hint="pip install 'stepscore[optimum]'"
        ) from None
    if tuple(map(int, found["transformers"].split(".")[:2])) >= TOO_NEW:
        raise ProviderUnavailable(
            f"transformers {found['transformers']} is installed; optimum-onnx needs a version before 4.58",
            hint="pip install 'stepscore[optimum]' 'transformers<4.58', in a separate environment",
        )
    try:
        with _quiet():
            import_module("optimum.exporters.onnx.model_configs")
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        raise ProviderUnavailable(
            f"optimum cannot be imported: {error}", hint="pip install 'stepscore[optimum]'"
        ) from None


def trace(checkpoint: WeightSource) -> bytes:
    """Return the traced model, an ONNX ModelProto whose parameters are inputs of the graph.

    Checkpoints with equal configurations are traced once. Raises ProviderUnavailable, or ExportError where
    the code cannot be traced.
    """
    require_optimum()
    settings = transformers_settings(checkpoint.family, checkpoint.config)
    settings |= {"vocab_size": TRACED_VOCABULARY, "tie_word_embeddings": False}
    return _traced(json.dumps(settings))


@lru_cache(maxsize=4)
def _traced(settings_json: str) -> bytes:
    import torch  # noqa: PLC0415

    config = configuration(json.loads(settings_json))
    try:
        with _quiet(), torch.no_grad():
            return _export(_unwritten(config))
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ExportError(
            f"the modelling code cannot be traced: {reason}",
            hint="use --exporter stepscore, and report this with the versions in `pip list`",
        ) from error


def _unwritten(config: Any) -> Any:
    """Return a model whose parameters use address space but no memory."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    for name, parameter in list(model.named_parameters()):
        module, _, attribute = name.rpartition(".")
        # numpy asks for huge pages: reading memory that was never written is fast, and allocates nothing.
        zeros = torch.from_numpy(np.zeros(tuple(parameter.shape), np.float32))
        setattr(model.get_submodule(module), attribute, torch.nn.Parameter(zeros, requires_grad=False))
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its frequencies are not parameters
    return model.eval()


def _export(model: Any) -> bytes:
    import torch  # noqa: PLC0415
    from optimum.exporters.tasks import TasksManager  # noqa: PLC0415

    import_module("optimum.exporters.onnx.model_configs")  # registers the configurations
    onnx_config_of = TasksManager.get_exporter_config_constructor(
        "onnx", model_type=model.config.model_type, task="text-generation", library_name="transformers"
    )
    onnx_config = onnx_config_of(model.config, use_past=False)
    example = onnx_config.generate_dummy_inputs(framework="pt")
    file = io.BytesIO()
    # Unless the model is in training mode the tracer merges parameters with equal values, and here all are
    # zero. Only the outermost module is switched: the modules inside, where it would matter, stay in eval.
    model.training = True
    with onnx_config.patch_model_for_export(model, model_kwargs={"logits_to_keep": 0}):
        inputs = onnx_config.ordered_inputs(model)
        torch.onnx.export(
            model,
            (example,),
            file,
            input_names=list(inputs),
            output_names=list(onnx_config.outputs),
            dynamic_axes={**inputs, **onnx_config.outputs},
            opset_version=OPSET,
            do_constant_folding=False,  # folded constants have no name
            export_params=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            dynamo=False,
        )
    return file.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the known warnings of a trace, and nothing else."""
    from torch.jit import TracerWarning  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    logging.set_verbosity_error()
    with warnings.catch_warnings():
        # Branches on whether a batch has more than one position: here it always has.
        warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean", TracerWarning)
        # Indices are never negative here.
        warnings.filterwarnings("ignore", "Exporting aten::index operator", UserWarning)
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript-based", DeprecationWarning)
        warnings.filterwarnings("ignore", "The feature will be removed", DeprecationWarning)
        yield
