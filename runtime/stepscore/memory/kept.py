"""Size of kept prefixes: what a token costs, and which pairs and settings can keep any."""

from __future__ import annotations

from stepscore.artifact.manifest import Manifest
from stepscore.artifact.pair import Pair
from stepscore.batching.given_rows import GivenRows
from stepscore.batching.kept_prefixes import KeptPrefixes
from stepscore.enums import Exporter, Format, Residency
from stepscore.errors import DoesNotFit, PairIncompatible

_INDEX_BYTES = 40
"""Of a token: its id, its row, two flags, its log-probs, and its part of a node of the trie."""


def bytes_per_kept_token(manifest: Manifest, element_bytes: int) -> int:
    """Return the bytes of a kept token: keys and values of all layers and a hidden state, of both models.

    2 * (layers * 2 * kv_heads * head_dim + hidden_size) * element_bytes, and its place in the index.
    """
    shape = manifest.architecture
    keys_values = shape.num_hidden_layers * 2 * shape.num_key_value_heads * shape.head_dim
    return 2 * (keys_values + shape.hidden_size) * element_bytes + _INDEX_BYTES


def num_kept_tokens(manifest: Manifest, num_bytes: int, element_bytes: int) -> int:
    """Return how many tokens a cache of this size keeps; raise DoesNotFit where it is not even one."""
    of_token = bytes_per_kept_token(manifest, element_bytes)
    if num_bytes < of_token:
        raise DoesNotFit(
            f"a prefix cache of {num_bytes:,} bytes keeps none of the tokens, {of_token:,} bytes each",
            hint=f"give a --prefix-cache of at least {1000 * of_token / 1e6:.0f}MB, for 1,000 tokens",
        )
    return num_bytes // of_token


def empty_cache(pair: Pair, num_bytes: int, element_bytes: int) -> KeptPrefixes:
    """Return a cache of this size, behind the rows of the pair's prefix."""
    num_tokens = num_kept_tokens(pair.manifest, num_bytes, element_bytes)
    of_token = bytes_per_kept_token(pair.manifest, element_bytes)
    return KeptPrefixes(num_tokens, GivenRows.of(pair.prefix()).token_ids, bytes_per_token=of_token)


def check_prefix_cache(manifest: Manifest, residency: Residency) -> None:
    """Raise PairIncompatible where a pair keeps no prefixes, or not with this residency."""
    if manifest.format is not Format.ONNX or manifest.exporter is not Exporter.STEPSCORE:
        kind = manifest.exporter if manifest.format is Format.ONNX else manifest.format
        raise PairIncompatible(
            f"{kind} pairs do not support --prefix-cache: their graphs cannot read keys and values",
            hint="omit --prefix-cache, or export the pair with the default backend",
        )
    if residency not in {Residency.RESIDENT, Residency.AUTO}:
        raise PairIncompatible(
            f"--prefix-cache needs --residency resident, not {residency}: where weights are read for every "
            "window, computing kept tokens again costs little more",
            hint="omit one of both options",
        )


def too_old_to_keep() -> PairIncompatible:
    """Return the error of a pair whose graphs have no outputs for kept rows."""
    return PairIncompatible(
        "this pair was exported before prefixes could be kept: its graphs do not output keys and values",
        hint="export it again, or omit --prefix-cache",
    )
