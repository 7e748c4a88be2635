"""Names and sizes that exporter and runtime agree on: graphs, inputs, outputs, tiles."""

from __future__ import annotations

SHORT_TOKENS = 1024
"""Up to this length attention holds its scores, [B, S, S] a head; longer sequences take another kernel."""


WEIGHTS = "weights.bin"


EMBED, BODY, HEAD = "embed.onnx", "body.onnx", "head.onnx"


HEAD_PART_COLUMNS = 32_768
"""Of a head with 152,064 columns and 8 bits a part is about as large as a layer."""


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


def unsigned_file(name: str) -> str:
    """Return the name of the graph that does the same with unsigned weights.

    >>> unsigned_file("layer-00.onnx")
    'layer-00.u8.onnx'
    """
    return name.replace(".onnx", ".u8.onnx")


def head_files(vocab_size: int) -> list[str]:
    """Return the names of the parts of the head, HEAD_PART_COLUMNS of the vocabulary each.

    >>> head_files(152_064)
    ['head-00.onnx', 'head-01.onnx', 'head-02.onnx', 'head-03.onnx', 'head-04.onnx']
    """
    return [f"head-{index:02d}.onnx" for index in range(-(-vocab_size // HEAD_PART_COLUMNS))]


def layer_file(index: int) -> str:
    """Return the name of one layer's graph file."""
    return f"layer-{index:02d}.onnx"


TILE = 8192


PIECE_ELEMENTS, PIECE_ROWS = 1 << 21, 256
"""What a matrix is cut into that the CPU turns into float32: so much at a time, but never fewer rows."""


def piece_rows(columns: int) -> int:
    """Return the rows of a piece of a matrix [rows, columns] that is turned into float32.

    >>> [piece_rows(columns) for columns in (1536, 3584, 18_944)]
    [1280, 512, 256]
    """
    return max(PIECE_ROWS, PIECE_ELEMENTS // columns // PIECE_ROWS * PIECE_ROWS)


TILE = 8192  # columns of the vocabulary that have logits at the same time
