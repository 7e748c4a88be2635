"""Speed, memory and fidelity on a GPU, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.reporting.old_gpu_tables import old_gpu
from benchmarks.reporting.table import Result, Results, Table, of_kind, percent, spread
from benchmarks.support.forms import LOSSLESS
from benchmarks.support.gpu_lines import Line, measured, unmeasured
from benchmarks.support.gpu_plan import GPU_FORMS, IN_16_BITS, IN_FP32, TRANSFORMERS, PartName

from stepscore.enums import Residency


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of an engine on the text."""

    name: str
    rate: Mapping[str, float]
    peak_mb: int


def gpu(results: Results) -> list[Table]:
    """Return the tables of every card, and those of figures that are kept from before."""
    found = of_kind(results, "gpu")
    tables = [table for result in found if "lines" in result for table in _of_card(result)]
    return tables + [table for result in found if "old" in result for table in old_gpu(result)]


def _of_card(result: Result) -> Iterator[Table]:
    layers = max(line["layers"] for line in result["lines"])
    lines = [line for line in result["lines"] if line["layers"] == layers]
    card, shape = lines[0]["card"], "a tiny shape" if result["quick"] else "Qwen2.5-7B's shape"
    where = f"{card}, two models of {shape}, {layers} layers"
    done = list(measured(lines).values())
    engines = sorted(_of_part(done, PartName.ENGINE), key=_order)
    tables = (
        _windows(where, engines),
        _text(where, done),
        _fidelity(card, done),
        _floor(where, done),
        _window_spread(where, engines),
        _text_spread(where, done),
        _unmeasured(where, lines),
    )
    yield from (table for table in tables if table.rows)


def _windows(where: str, engines: Sequence[Line]) -> Table:
    sizes = sorted({window["tokens"] for line in engines for window in _run(line)})
    rows = []
    for line in engines:
        by_size = {window["tokens"]: window for window in _run(line)}
        cells = [_of_floor(by_size[size]) if size in by_size else "" for size in sizes]
        last = _run(line)[-1]
        rows.append([_name(line), *cells, f"{last['peak_mb']:,}", f"{last['estimated_mb']:,}"])
    return Table(
        f"{where}: tokens/s by window of random sequences, median",
        ["form, residency", *(f"{size:,} tokens" for size in sizes), "peak MB of the GPU", "estimated MB"],
        rows,
        "In brackets the share of the sustained floor at as many rows, by cuBLAS on the same card.",
    )


def _of_floor(window: Line) -> str:
    share = f" ({percent(window['share_of_floor'], 0)})" if "share_of_floor" in window else ""
    return f"{window['median']:,.0f}{share}"


def _window_spread(where: str, engines: Sequence[Line]) -> Table:
    return Table(
        f"{where}: windows, spread and memory",
        ["form, residency", "tokens per window", "slowest to fastest, tokens/s", "peak MB", "n"],
        [
            [_name(line), f"{window['tokens']:,}", spread(window), f"{window['peak_mb']:,}", f"{window['n']}"]
            for line in engines
            for window in _run(line)
        ],
        folded=True,
    )


def _text(where: str, done: Sequence[Line]) -> Table:
    speeds = list(_speeds(done))
    by_name = {each.name: each.rate["median"] for each in speeds}
    peers = [f"transformers fp16, {how}" for how in ("one at a time", "padded batches of 8")]
    rows = []
    for each in speeds:
        median = each.rate["median"]
        ratios = [f"{median / by_name[peer]:.2f}" if peer in by_name else "" for peer in peers]
        rows.append([each.name, f"{median:,.0f}", *ratios, f"{each.peak_mb:,}"])
    counts = next(
        (f", {line['sequences']} sequences, {line['tokens']:,} tokens" for line in _texts(done)), ""
    )
    return Table(
        f"{where}: best-of-8 text{counts}, median",
        ["engine", "tokens/s", "x transformers fp16 one at a time", "x padded batches of 8", "peak MB"],
        rows,
    )


def _text_spread(where: str, done: Sequence[Line]) -> Table:
    return Table(
        f"{where}: best-of-8 text, spread",
        ["engine", "slowest to fastest, tokens/s", "n"],
        [[each.name, spread(each.rate), str(each.rate["n"])] for each in _speeds(done)],
        folded=True,
    )


def _speeds(done: Sequence[Line]) -> Iterator[Speed]:
    for line in _texts(done):
        name = line.get("peer", f"stepscore {line['arguments'][0]}")
        for key, how in (
            ("shared", ""),
            ("not_shared", ", prefixes not shared"),
            ("one_at_a_time", ", one at a time"),
            ("padded_batches_of_8", ", padded batches of 8"),
        ):
            if key in line:
                yield Speed(name + how, line[key], line["peak_mb"])


def _fidelity(card: str, done: Sequence[Line]) -> Table:
    rows = []
    for line in _of_part(done, PartName.FIDELITY):
        subject, errors = line["arguments"][0], line["log_ratio_error"]
        if subject == TRANSFORMERS:
            rows += [[f"transformers {name}", percent(error), ""] for name, error in errors.items()]
        else:
            equal = ", equal to bf16 bit for bit" if line.get("equal_to_bf16") else ""
            cells = [percent(errors[name]) if name in errors else "" for name in (IN_16_BITS, IN_FP32)]
            rows.append([subject + equal, *cells])
    tests = [line["last_line"].strip("= ") for line in _of_part(done, PartName.CUDA_TESTS)]
    return Table(
        f"{card}: error of the log-ratio of the bundled pair against fp64",
        ["form", *(IN_16_BITS, IN_FP32)],
        rows,
        f"{LOSSLESS}: against checkpoints rounded to bf16."
        + "".join(f" Tests on this card: {line}." for line in tests),
    )


def _floor(where: str, done: Sequence[Line]) -> Table:
    return Table(
        f"{where}: floor, only the GEMMs by cuBLAS",
        ["precision", "rows", "burst, tokens/s", "sustained, tokens/s", "sustained TFLOP/s", "SM clock, MHz"],
        [
            [
                line["arguments"][0],
                f"{row['rows']:,}",
                f"{row['burst']['tokens_per_second']:,.0f}",
                f"{row['sustained']['tokens_per_second']:,.0f}",
                f"{row['sustained']['tflops']:,.0f}",
                f"{row['sustained']['sm_mhz']:,.0f}" if "sm_mhz" in row["sustained"] else "",
            ]
            for line in _of_part(done, PartName.FLOOR)
            for row in line["rows"]
        ],
    )


def _unmeasured(where: str, lines: Sequence[Line]) -> Table:
    return Table(
        f"{where}: parts that were not measured",
        ["part", "why"],
        [
            [" ".join([line["part"], *line["arguments"]]), line.get("skipped") or line["failed"][-1]]
            for line in unmeasured(lines)
        ],
        folded=True,
    )


def _of_part(done: Sequence[Line], name: PartName) -> list[Line]:
    return [line for line in done if line["part"] == name]


def _texts(done: Sequence[Line]) -> list[Line]:
    return [*_of_part(done, PartName.TEXT), *_of_part(done, PartName.PEER)]


def _run(line: Line) -> list[Mapping[str, Any]]:
    """Return the windows that did not fail; the first never does."""
    return [window for window in line["windows"] if "median" in window]


def _name(line: Line) -> str:
    form, residency = line["arguments"]
    kept = f", {line['stages_kept']} stages resident" if "stages_kept" in line else ""
    return f"{form}, {residency}{kept}"


def _order(line: Line) -> tuple[int, int]:
    form, residency = line["arguments"]
    return list(GPU_FORMS).index(form), list(Residency).index(Residency(residency))
