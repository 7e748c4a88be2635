"""Ordered sessions run the nodes of a file in its order and no others: no matrix is turned early."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from testing.engine_runs import run
from testing.forms import MERGED, TWO_BITS, name_of
from testing.pairs import PairOf
from testing.sequences import tokens

from stepscore.artifact.graph_contract import BODY
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import pack
from stepscore.engine.ort import sessions as provider_module
from stepscore.engine.ort.sessions import Sessions
from stepscore.enums import Coding, Precision, Products, Provider, Residency
from stepscore_export.options import ExportOptions

STREAMED = [
    *MERGED.values(),
    TWO_BITS[Products.SEPARATE],
    ExportOptions(Precision.BF16, coding=Coding.INDEPENDENT),
]


@contextmanager
def profiled(folder: Path) -> Iterator[dict[Path, list[str]]]:
    """Take note of the nodes that every graph ran, in order; those of a subgraph left out."""
    create, opened, ran = ort.InferenceSession, [], {}

    def session(path: str, options: ort.SessionOptions, **keywords: Any) -> ort.InferenceSession:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / Path(path).stem)
        opened.append((Path(path), create(path, options, **keywords)))
        return opened[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provider_module.ort, "InferenceSession", session)
        yield ran
    for path, each in opened:
        events = json.loads(Path(each.end_profiling()).read_text())
        kernels = [event for event in events if event["name"].endswith("_kernel_time")]
        kernels.sort(key=lambda event: event["ts"])
        ran[path] = [event["name"].removesuffix("_kernel_time") for event in kernels]


@pytest.mark.parametrize("form", STREAMED, ids=name_of)
def test_low_memory_graphs_run_in_file_order(pair_of: PairOf, tmp_path: Path, form: ExportOptions) -> None:
    pair = pair_of(
        form.precision,
        coding=form.coding,
        difference_precision=form.difference_precision,
        products=form.products,
    )
    residency = Residency.RESIDENT if form.products is Products.MERGED else Residency.STREAM
    with profiled(tmp_path) as ran:
        run(Pair.open(pair), [pack(tokens(20, 33), [0, 0])], residency)
    assert len(ran) > 2
    assert_run_as_written(ran)


@pytest.mark.parametrize("form", MERGED.values(), ids=name_of)
def test_whole_body_runs_in_file_order_if_preserved(
    pair_of: PairOf, tmp_path: Path, form: ExportOptions
) -> None:
    """As they do on CUDA; otherwise matrices of all layers would be floats before the first product."""
    pair = Pair.open(pair_of(form.precision, coding=form.coding, products=form.products))
    batch = pack(tokens(20, 33), [0, 0])
    rows = np.ones((len(batch.input_ids), pair.manifest.architecture.hidden_size), np.float32)
    with profiled(tmp_path) as ran:
        session = Sessions(Provider.CPU, preserve_node_order=True).open(pair.path / "both" / BODY)
        feeds = {"rows_reference": rows, "rows_policy": rows}
        feeds |= batch.feeds([value.name for value in session.get_inputs()])
        for each in session.get_inputs():  # no row is given
            if each.name.startswith("given"):
                feeds[each.name] = np.zeros((0, each.shape[1]), np.float32)
        session.run(None, feeds)
    assert_run_as_written(ran)


def assert_run_as_written(ran: dict[Path, list[str]]) -> None:
    for path, names in ran.items():
        written = [node.name for node in onnx.load(path, load_external_data=False).graph.node]
        assert [name for name in names if name in {*written}] == written
        assert [name for name in names if turns(name)] == [name for name in written if turns(name)]


def turns(name: str) -> bool:
    """Whether a node turns a matrix into floats."""
    return any(kind in name for kind in ("GatherBlockQuantized", "DequantizeLinear", "Cast"))
