"""Says what a folder that is no readable checkpoint holds instead, and which command makes one of it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from stepscore.errors import CheckpointCorrupt, CheckpointUnsafe, ExportError, UnsupportedArchitecture
from stepscore_export.checkpoint.untrusted_folder import CheckpointFolder

CONFIG = "config.json"
_COMPLETE = "then put config.json and the tokenizer's files beside the weights"


@dataclass(frozen=True, slots=True)
class _Sign:
    """Files that show what wrote a folder; `{0}` in the texts is the first of them, `{1}` the folder."""

    patterns: tuple[str, ...]
    error: type[ExportError]
    message: str
    hint: str


# The first that fits is reported: what is more specific stands first.
_SIGNS = (
    _Sign(
        ("adapter_config.json",),
        UnsupportedArchitecture,
        "the folder holds an adapter ({0}) without the model that it belongs to",
        "copy the model's config.json, tokenizer and model.safetensors beside a LoRA adapter, which is then "
        "merged; or save peft's merge_and_unload()",
    ),
    _Sign(
        ("model_world_size_*_rank_*.pt",),
        CheckpointUnsafe,
        "the weights are shards of a training with verl ({0}); they are pickles, which are never loaded",
        "python -m verl.model_merger merge --backend fsdp --local_dir {1} --target_dir MERGED",
    ),
    _Sign(
        ("zero_to_fp32.py", "global_step*", "zero_pp_rank_*", "mp_rank_*.pt"),
        UnsupportedArchitecture,
        "the folder holds a checkpoint of DeepSpeed ({0}), split over the ranks of the training",
        "python {1}/zero_to_fp32.py {1} MERGED --safe_serialization, " + _COMPLETE,
    ),
    _Sign(
        ("*.distcp", "pytorch_model_fsdp_*"),
        UnsupportedArchitecture,
        "the weights are a distributed checkpoint of PyTorch ({0}), split over the ranks of the training",
        "accelerate merge-weights {1} MERGED, " + _COMPLETE,
    ),
    _Sign(
        ("*.gguf",),
        UnsupportedArchitecture,
        "the weights are a GGUF file ({0}), the format of llama.cpp",
        "export from the safetensors checkpoint in fp32, bf16 or fp16 that it was converted from",
    ),
    _Sign(
        ("*.bin", "*.pt", "*.pth", "*.ckpt"),
        CheckpointUnsafe,
        "all weights are pickles ({0}), and loading a pickle can run code",
        "if you trust them, convert them: model.save_pretrained(folder, safe_serialization=True)",
    ),
    _Sign(
        ("*.h5", "*.msgpack", "*.onnx", "*.npz", "*.nemo"),
        UnsupportedArchitecture,
        "the weights are in a format that is not read ({0})",
        "load the model with transformers, then model.save_pretrained(folder, safe_serialization=True)",
    ),
    _Sign(
        ("*.safetensors",),
        CheckpointCorrupt,
        "found {0}, but neither model.safetensors nor model.safetensors.index.json",
        "download all files again; a single file must be named model.safetensors",
    ),
)


def no_weights(folder: CheckpointFolder) -> ExportError:
    """Return the error for a folder without readable weights."""
    return _by_sign(folder) or CheckpointCorrupt(
        "no weights: neither model.safetensors nor model.safetensors.index.json exists",
        hint="download the checkpoint again, or save it: model.save_pretrained(folder)",
    )


def no_config(folder: CheckpointFolder) -> ExportError:
    """Return the error for a folder without config.json."""
    weights = folder.has("model.safetensors") or folder.has("model.safetensors.index.json")
    if not weights and (error := _by_sign(folder)) is not None:
        return error
    inside = folder.folders_with(CONFIG)
    hint = (
        f"pass the folder below it that has one: {folder.path / inside[0]}"
        if inside
        else "pass the folder that holds config.json, tokenizer and weights together, or `id@revision`"
    )
    return CheckpointCorrupt(f"{CONFIG} is missing from {folder.path}", hint=hint)


def _by_sign(folder: CheckpointFolder) -> ExportError | None:
    for sign in _SIGNS:
        found = [name for pattern in sign.patterns for name in folder.names(pattern)]
        if found:
            texts = found[0], shlex.quote(str(folder.path))
            return sign.error(sign.message.format(*texts), hint=sign.hint.format(*texts))
    return None
