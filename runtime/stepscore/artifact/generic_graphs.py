"""Names of the graphs of a pair for CUDA: a handful of files whose weights are inputs.

    embed        INPUT_IDS [n] -> ROWS [n, hidden_size], of every model; runs on the host, over weights.bin
    layer        ROWS, the indices of a batch, GIVEN, the weights of a layer -> NEXT_ROWS, KEPT; of one model
    last_layer   the same, FINAL_NORM and GIVEN_HIDDEN -> HIDDEN, KEPT
    head_tile    HIDDEN, CHUNK_ROWS, TARGETS, START, END, TILE_WEIGHT [c, hidden_size] -> PARTS [t, 2, 1]
    decode_...   CODES, SCALES (and ZEROS) -> WEIGHT
    add_...      BASE and the same -> WEIGHT, base + difference; it may be written over BASE
    cast         WEIGHT in 16 bits -> WEIGHT in fp32

Each file has two variants. `NAME.onnx` computes in the pair's 16-bit type. `NAME.fp32.onnx` computes in fp32
over the same stored weights: it is what the CPU provider runs. `head_tile_fp32` takes 16-bit hidden states
and a 16-bit tile, and computes logits in fp32. Where the weights of a layer are, tensor_table.py says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from stepscore.artifact.graph_contract import stream_names
from stepscore.artifact.manifest import Architecture, Manifest, Unit
from stepscore.enums import DifferencePrecision, Exporter, Format, Precision, Target

EMBED_GRAPH, LAYER, LAST_LAYER = "embed", "layer", "last_layer"
HEAD_TILE, HEAD_TILE_FP32, CAST = "head_tile", "head_tile_fp32", "cast"

GIVEN, KEPT = "given", "kept"
FINAL_NORM = "norm"
ROTARY_COS, ROTARY_SIN = "rotary.cos", "rotary.sin"
INPUT_NORM, QKV_BIAS, QUERY_NORM, KEY_NORM = "input_norm", "qkv_bias", "q_norm", "k_norm"
POST_NORM = "post_norm"
MATRICES = ("qkv", "output", "gate", "up", "down")
START, END, TILE_WEIGHT = "start", "end", "tile"
CODES, SCALES, ZEROS, BASE, WEIGHT = "codes", "scales", "zeros", "base", "weight"
NUM_ROWS, NUM_COLUMNS = "num_rows", "num_columns"

TABLE_BITS = 8
"""Bits of embedding and head, at least: at 4 bits the head alone causes half of the base's error."""
_BITS = {Precision.INT8: 8, Precision.INT4: 4}
_DIFFERENCE_BITS = {DifferencePrecision.INT8: 8, DifferencePrecision.INT4: 4}
LEAST_BLOCK = 16


def uses_generic_graphs(manifest: Manifest) -> bool:
    """Return whether a pair's graphs have their weights as inputs: stepscore's own pairs for CUDA."""
    ours = manifest.format is Format.ONNX and manifest.exporter is Exporter.STEPSCORE
    return ours and manifest.target is Target.CUDA


def base_block_size(block_size: int) -> int:
    """Return the block size of a base: half of that of the difference, as the base causes most of the error.

    >>> base_block_size(32), base_block_size(16)
    (16, 16)
    """
    return max(block_size // 2, LEAST_BLOCK)


@dataclass(frozen=True, slots=True)
class Decoder:
    """A graph that dequantizes a matrix: (code - zero) * scale by blocks, added to a base or not.

    At 8 bits codes are [blocks, block_size] and scales [blocks]: CUDA's DequantizeLinear has no blocked
    kernel for 8-bit codes. At 4 bits codes are [rows, columns], scales and zeros [rows, blocks]. `padded`:
    rows end with a block that is not full, and the weight is cut to its columns.
    """

    bits: int
    block_size: int
    zeros: bool = False
    add: bool = False
    padded: bool = False

    @property
    def name(self) -> str:
        """Return the name of the graph."""
        return f"{'add' if self.add else 'decode'}_int{self.bits}{'_zeros' if self.zeros else ''}"


def decoders(
    shape: Architecture, precision: Precision, block_size: int, difference: DifferencePrecision | None
) -> tuple[Decoder, ...]:
    """Return the decoders that a pair's matrices need, each once; none for floating-point weights."""
    if precision not in _BITS:
        return ()
    bits = _BITS[precision]
    if difference is None:
        return _unique(shape, block_size, [Decoder(TABLE_BITS, block_size), Decoder(bits, block_size)])
    of_base = base_block_size(block_size)
    base = [Decoder(8, of_base), Decoder(bits, of_base, zeros=bits == 4)]
    of_difference = _DIFFERENCE_BITS[difference]
    added = [Decoder(TABLE_BITS, block_size, add=True), Decoder(of_difference, block_size, add=True)]
    return _unique(shape, of_base, base) + _unique(shape, block_size, added)


def decoders_of(manifest: Manifest) -> tuple[Decoder, ...]:
    """Return the decoders of a pair."""
    difference = None if manifest.difference is None else manifest.difference.precision
    return decoders(manifest.architecture, manifest.precision, manifest.block_size, difference)


def _unique(shape: Architecture, block_size: int, found: list[Decoder]) -> tuple[Decoder, ...]:
    widths = (shape.hidden_size, shape.num_attention_heads * shape.head_dim, shape.intermediate_size)
    padded = any(width % block_size for width in widths)
    return tuple(dict.fromkeys(replace(each, padded=padded) for each in found))


def vector_sizes(shape: Architecture) -> dict[str, int]:
    """Return the sizes of the norms and the bias of a layer, by the names of the layer graph's inputs."""
    heads = shape.num_attention_heads + 2 * shape.num_key_value_heads
    bias = {QKV_BIAS: heads * shape.head_dim} if shape.attention_bias else {}
    norms = {QUERY_NORM: shape.head_dim, KEY_NORM: shape.head_dim} if shape.qk_norm else {}
    return {INPUT_NORM: shape.hidden_size, **bias, **norms, POST_NORM: shape.hidden_size}


def layer_graphs(unit: Unit) -> Iterator[str]:
    """Yield the names of the layer graphs of every model of a unit."""
    for name in (LAYER, LAST_LAYER):
        yield from stream_names(name, unit.models)


def generic_names(manifest: Manifest, unit: Unit, *, in_fp32: bool) -> list[str]:
    """Return the names of a unit's graphs, without what follows the dot."""
    own = [] if in_fp32 else [HEAD_TILE_FP32]
    coders = [decoder.name for decoder in decoders_of(manifest)] or ([CAST] if in_fp32 else [])
    return [EMBED_GRAPH, *layer_graphs(unit), HEAD_TILE, *coders, *own]


def generic_file(name: str, *, in_fp32: bool) -> str:
    """Return the name of a graph's file.

    >>> generic_file("layer", in_fp32=False), generic_file("layer", in_fp32=True)
    ('layer.onnx', 'layer.fp32.onnx')
    """
    return f"{name}.fp32.onnx" if in_fp32 else f"{name}.onnx"


def generic_files(manifest: Manifest, unit: Unit) -> list[str]:
    """Return the names of all graph files of a unit."""
    return [
        generic_file(name, in_fp32=in_fp32)
        for in_fp32 in (False, True)
        for name in generic_names(manifest, unit, in_fp32=in_fp32)
    ]
