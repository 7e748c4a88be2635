"""Rejects sliding windows, which transformers' Qwen2 and Qwen3 may have."""

from __future__ import annotations

from stepscore.errors import CheckpointCorrupt, UnsupportedArchitecture
from stepscore_export.families.base import DecoderConfig, Json
from stepscore_export.families.config_values import flag, positive_int, strings

FULL, SLIDING = "full_attention", "sliding_attention"
_DEFAULT_WINDOW, _DEFAULT_FULL_LAYERS = 4096, 28


def check_windows(config: Json, parsed: DecoderConfig) -> None:
    """Raise UnsupportedArchitecture where a layer has a window in use, or attention of another kind."""
    types = strings(config, "layer_types")
    if other_layers := set(types) - {FULL, SLIDING}:
        raise UnsupportedArchitecture(
            f"config.json: layer_types has {sorted(other_layers)}, only {FULL!r} is supported"
        )
    in_use, window = flag(config, "use_sliding_window"), None
    if in_use and config.get("sliding_window", _DEFAULT_WINDOW) is not None:
        window = positive_int(config, "sliding_window", _DEFAULT_WINDOW)
    layers = parsed.num_hidden_layers
    if not types and window is not None:  # as transformers: full attention in the first layers
        full = config.get("max_window_layers", _DEFAULT_FULL_LAYERS)
        if type(full) is not int:
            raise CheckpointCorrupt(f"config.json: max_window_layers is {full!r}, expected an integer")
        types = [SLIDING] if full < layers else []
    longest = parsed.max_position_embeddings
    if SLIDING in types[:layers] and (window is None or window < longest):
        raise UnsupportedArchitecture(
            f"config.json: some layers have {SLIDING!r} with a window of {window} tokens, expected all "
            f"{longest} of the model (use_sliding_window is {str(in_use).lower()})",
            hint="set use_sliding_window to false and remove layer_types if every text fits the window",
        )
