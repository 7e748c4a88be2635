"""Names and sizes that the exporter and the runtime agree on: graphs, their inputs and outputs, tiles.

    embed   INPUT_IDS [n] -> ROWS [n, hidden_size]
    body    ROWS, the indices of a batch, given rows -> HIDDEN [k + m, hidden_size], kept rows
    layer   ROWS, the indices of a batch, given rows -> NEXT_ROWS [n, hidden_size], kept rows
            (the last layer, like the body, which has them all, outputs HIDDEN)
    head    HIDDEN, CHUNK_ROWS [c], TARGETS [t, 2] -> PARTS [t, 2, tiles]

Given rows: keys and values [g, 2 * kv_heads * head_dim] a layer, before rotary embedding, and what the head
reads of k of them, GIVEN_HIDDEN [k, hidden_size]. Kept rows: the same keys and values of q computed rows,
KEPT_INDEX [q] among the n, as outputs; a later batch may be given them. Graphs for the CPU have a second
view, for batches most of whose rows are given: FEW_QUERIES and FEW_POSITIONS [F, Q], FEW_KEYS [F, S],
FEW_MASK [F, Q, S] (batching/few_queries.py). Older pairs have none of these.

n tokens of a batch, m of them scored, c scored rows of one chunk of the head, t (row, token id) targets. The
indices of a batch are described in batching/batch.py, the graphs in stepscore_export/graphs/.
"""

from __future__ import annotations

from collections.abc import Sequence

WEIGHTS = "weights.bin"
PREFIX = "prefix.npz"
EMBED, BODY, HEAD = "embed.onnx", "body.onnx", "head.onnx"

INPUT_IDS = "input_ids"
ROWS, HIDDEN = "rows", "hidden"
NEXT = "next_"
"""Prefix of a layer's output; without it the name is that of the next layer's input."""
NEXT_ROWS = NEXT + ROWS

PAD_INDEX, UNPAD_INDEX, SEQLENS_K = "pad_index", "unpad_index", "seqlens_k"
TOTAL_SEQUENCE_LENGTH, SCORE_INDEX = "total_sequence_length", "score_index"

GIVEN_HIDDEN = "given_hidden"
KEPT_INDEX = "kept_index"
FEW_QUERIES, FEW_POSITIONS = "few_queries", "few_positions"
FEW_KEYS, FEW_MASK = "few_keys", "few_mask"
SCORED_AXIS = "s"
"""The axis k + m of HIDDEN."""

CHUNK_ROWS, TARGETS, PARTS = "rows", "targets", "parts"

SHORT_TOKENS = 1024
"""Up to this length attention materializes its scores, [B, S, S] per head; above it runs a flash kernel."""

TILE = 8192
"""Columns of the vocabulary whose logits exist at the same time."""
HEAD_PART_COLUMNS = 32_768
"""Columns of one graph of the head: at 152,064 columns and 8 bits a part is about as large as a layer."""

PIECE_ELEMENTS, PIECE_ROWS = 1 << 21, 256
"""The CPU dequantizes a matrix in pieces of about so many elements, but of no fewer rows."""


def graph_files(num_hidden_layers: int, vocab_size: int) -> list[str]:
    """Return the names of the graph files of one unit.

    >>> graph_files(2, 40_000)
    ['embed.onnx', 'body.onnx', 'layer-00.onnx', 'layer-01.onnx', 'head.onnx', 'head-00.onnx', 'head-01.onnx']
    """
    return [
        EMBED,
        BODY,
        *(layer_file(index) for index in range(num_hidden_layers)),
        HEAD,
        *head_files(vocab_size),
    ]


def layer_file(index: int) -> str:
    """Return the name of one layer's graph file."""
    return f"layer-{index:02d}.onnx"


def head_files(vocab_size: int) -> list[str]:
    """Return the names of the parts of the head, HEAD_PART_COLUMNS of the vocabulary each.

    >>> head_files(152_064)
    ['head-00.onnx', 'head-01.onnx', 'head-02.onnx', 'head-03.onnx', 'head-04.onnx']
    """
    return [f"head-{index:02d}.onnx" for index in range(-(-vocab_size // HEAD_PART_COLUMNS))]


def unsigned_file(name: str) -> str:
    """Return the name of the same graph with unsigned weights.

    >>> unsigned_file("layer-00.onnx")
    'layer-00.u8.onnx'
    """
    return name.replace(".onnx", ".u8.onnx")


def stream_names(name: str, models: Sequence[str]) -> tuple[str, ...]:
    """Return the name of an input or output for every model of a unit; a model alone has no suffix.

    >>> stream_names(ROWS, ["policy"]), stream_names(ROWS, ["reference", "policy"])
    (('rows',), ('rows_reference', 'rows_policy'))
    """
    return (name,) if len(models) == 1 else tuple(f"{name}_{model}" for model in models)


def given_name(layer: int) -> str:
    """Return the input for the keys and values of given rows of one layer.

    >>> given_name(3)
    'given_03'
    """
    return f"given_{layer:02d}"


def kept_name(layer: int) -> str:
    """Return the output for the keys and values of kept rows of one layer.

    >>> kept_name(3)
    'kept_03'
    """
    return f"kept_{layer:02d}"


def piece_rows(columns: int) -> int:
    """Return the rows of a piece of a matrix [rows, columns] that is dequantized at once.

    >>> [piece_rows(columns) for columns in (1536, 3584, 18_944)]
    [1280, 512, 256]
    """
    return max(PIECE_ROWS, PIECE_ELEMENTS // columns // PIECE_ROWS * PIECE_ROWS)
