"""`stepscore plot`: figures for papers, and their numbers; equal inputs give equal files."""

from __future__ import annotations

import csv
import io
import json
import struct
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from testing.outputs import stop_clock
from testing.scored_lines import failed, scored, write
from testing.uninstalled import uninstall

pytest.importorskip("matplotlib", reason="figures need the extra plots")
import matplotlib as mpl
from matplotlib.figure import Figure

from stepscore.cli.main import main
from stepscore.enums import Convention, Series
from stepscore.jobs.provenance import HeaderLine, Provenance
from stepscore.plots.canvas import BASELINES, STYLES
from stepscore.plots.plot import MOST_SERIES, Origin
from stepscore.plots.step_rewards import StepRewardPlot, rewards_by_label

KINDS = ("accuracy", "position", "first-error", "step-rewards", "calibration")
ORIGIN = Provenance(
    pair="c0ffee" * 10,
    beta=0.05,
    convention=Convention.EXACT,
    version="0.0.1",
    date="2026-01-01T12:30:00.000Z",
)


def plot(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["plot", *map(str, arguments)])


def records(seed: int = 0) -> list[dict[str, Any]]:
    """Ten problems of four samples with labels, rewards and answers."""
    rng = np.random.default_rng(seed)
    found = []
    for problem in range(10):
        for sample in range(4):
            rewards = rng.normal(0, 1, 4).tolist()
            label = -1 if sum(rewards) > 0 else int(np.argmin(rewards))
            answer = {"answer": "1" if label < 0 else "2", "final_answer": "1"}
            names = {"id": f"p{problem}-{sample}", "problem": f"p{problem}"}
            found.append(scored(rewards, **names, **answer, label=label))
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = write(tmp_path / "one.scored.jsonl", *records())
    file.write_bytes(HeaderLine(ORIGIN).encode() + file.read_bytes())
    return file


def drawn(kind: str, path: Path, *outputs: Path) -> list[bytes]:
    done = plot(kind, path, *(part for output in outputs for part in ("-o", output)))
    assert done.exit_code == 0, done.stderr
    return [output.read_bytes() for output in outputs]


@pytest.mark.parametrize("kind", KINDS)
def test_svg_holds_text_as_text_and_depends_on_the_input_alone(
    kind: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (svg,) = drawn(kind, path, tmp_path / "f.svg")
    texts = [node.text for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert len(texts) > 8
    assert ORIGIN.pair is not None
    assert ORIGIN.pair.encode() in svg
    monkeypatch.setitem(mpl.rcParams, "font.size", 30)  # a user's own style
    assert drawn(kind, path, tmp_path / "f.svg") == [svg]


def test_pdf_and_png_hold_their_origin_and_depend_on_the_input_alone(path: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "f.pdf", tmp_path / "f.png"
    pdf, png = drawn("step-rewards", path, *outputs)
    assert b"/CreationDate (D:20260101123000Z)" in pdf
    assert b"/Subtype /Type0" in pdf
    assert b"/Subtype /Type3" not in pdf
    assert ORIGIN.pair is not None
    assert all(ORIGIN.pair.encode() in content for content in (pdf, png))
    assert struct.unpack(">I", png[16:20])[0] == 975  # 3.25 inches at 300 dots
    assert drawn("step-rewards", path, *outputs) == [pdf, png]


@pytest.mark.parametrize("kind", KINDS)
def test_csv_and_json_hold_the_same_numbers(kind: str, path: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "two.jsonl", *records(seed=1))
    table, data = tmp_path / "d.csv", tmp_path / "d.json"
    done = plot(kind, path, other, "-o", table, "-o", data)
    assert done.exit_code == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    document = json.loads(data.read_text())
    assert (document["schema_version"], document["kind"]) == (1, kind)
    assert [series["name"] for series in document["series"]] == ["one", "two"]
    assert [series["stepscore"]["pair"] for series in document["series"]] == [ORIGIN.pair, None]
    flat = [{"series": one["name"], **row} for one in document["series"] for row in one["rows"]]
    assert len(rows) == len(flat) > 2
    for row, values in zip(rows, flat, strict=True):
        assert {name: "" if value is None else str(value) for name, value in values.items()} == {
            name: row[name] for name in values
        }
    assert {row["pair"] for row in rows} == {ORIGIN.pair, ""}


def test_accuracies_are_those_of_select(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_clock(monkeypatch)
    assert plot("accuracy", path, "-o", tmp_path / "d.csv", "--reducer", "min").exit_code == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "d.csv").read_text())))
    done = CliRunner().invoke(main, ["select", str(path), "--json", "--reducer", "min"])
    accuracies = json.loads(done.stdout)["accuracies"]
    for row, found in zip(rows, accuracies, strict=True):
        for name in ("chosen", "majority", "random", "pass_at_n"):
            values = [float(row[key]) for key in (name, f"{name}_low", f"{name}_high")]
            assert values == [found[name][key] for key in ("mean", "low", "high")]


# Readable without colour


def luminance(color: str) -> float:
    """Relative luminance by Rec. 709, of gamma-corrected values: 0 is black."""
    red, green, blue = mpl.colors.to_rgb(color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_styles_differ_in_dashes_and_in_marker_and_are_dark() -> None:
    everything = (*STYLES, *BASELINES)
    assert len(STYLES) == MOST_SERIES
    for one, other in combinations(everything, 2):
        assert one.dashes != other.dashes
        assert one.marker != other.marker
    assert all(luminance(style.color) < 0.5 for style in everything)


@pytest.mark.parametrize("kind", KINDS)
def test_curves_of_a_figure_can_be_told_apart_without_colour(
    kind: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    other = write(tmp_path / "two.jsonl", *records(seed=1))
    for files in ([path], [path, other]):
        assert plot(kind, *files, "-o", tmp_path / "f.png").exit_code == 0
    for figure in figures:
        for axes in figure.axes:
            lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
            looks = {(str(line._dash_pattern), line.get_marker()) for line in lines}
            assert len(looks) == len(lines)


# Names


@pytest.mark.parametrize("name", ["_hidden", "$x$ & <b>", "a\x1b\nb", "é"])
def test_names_stand_in_the_legend_as_they_are(name: str, path: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "two.jsonl", *records(seed=1))
    done = plot("accuracy", path, other, "--name", name, "--name", "two", "-o", tmp_path / "f.svg")
    assert done.exit_code == 0, done.stderr
    tree = ElementTree.fromstring((tmp_path / "f.svg").read_bytes())
    texts = ["".join(node.itertext()).strip() for node in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"two", name.replace("\x1b", r"\x1b").replace("\n", r"\n")} <= {*texts}


# What goes wrong


def test_names_must_be_one_each_and_tell_files_apart(path: Path, tmp_path: Path) -> None:
    same = write(tmp_path / "one.jsonl", *records())
    for arguments, message in (
        ((path, same), "files have one name (one, one): tell them apart by --name"),
        ((path, same, "--name", "a"), "1 names for 2 files"),
        ((*[path] * 4,), "at most 3"),
    ):
        done = plot("first-error", *arguments, "-o", tmp_path / "f.csv")
        assert (done.exit_code, message in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "figure.gif"], "does not end in one of .pdf, .svg, .png, .csv, .json"),
        (["-o", "f.pdf", "--width", "84"], "invalid width '84'"),
        (["-o", "f.pdf", "--width", "1e9in"], "invalid width"),
        (["-o", "f.pdf", "--width", "100cm"], "1 to 20 inches"),
        (["-o", "f.pdf", "--n", "9"], "no problem has more than 4 samples"),
        (["-o", "f.pdf", "--temperature", "2"], "--temperature needs --method weighted"),
        ([], "Missing option"),
    ],
)
def test_usage_errors_exit_2_and_write_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = plot("accuracy", path, *options)
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_the_output_is_not_the_input(tmp_path: Path) -> None:
    path = write(tmp_path / "scored.json", *records())
    before = path.read_bytes()
    assert plot("position", path, "-o", path).exit_code == 3
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("first-error", {}, "no record has a usable `label`"),
        ("first-error", {"label": -1}, "no solution has a wrong step"),
        ("step-rewards", {"label": 7}, "no record has a usable `label`"),
        ("calibration", {}, "no problem has a known answer"),
        ("position", {}, "no problem has a known answer"),
    ],
)
def test_files_without_the_truth_are_refused(
    kind: str, fields: dict[str, int], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "s.jsonl", scored([0.1], id=1, **fields))
    done = plot(kind, path, "-o", tmp_path / "f.csv")
    assert (done.exit_code, message in done.stderr) == (3, True), done.stderr


def test_records_with_errors_are_counted_and_the_rest_is_plotted(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", *records(), failed("bad"), scored([0.1], id="unlabelled"))
    done = plot("step-rewards", path, "-o", tmp_path / "f.csv")
    assert done.exit_code == 1
    assert "skipped 2 records with errors (invalid_record 1, too_long 1): bad, unlabelled" in done.stderr


def test_numbers_need_no_matplotlib_and_figures_name_the_extra(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall(monkeypatch, "matplotlib", "matplotlib")
    assert plot("position", path, "-o", tmp_path / "f.csv").exit_code == 0
    done = plot("position", path, "-o", tmp_path / "f.pdf")
    assert done.exit_code == 3
    assert "matplotlib is not installed" in done.stderr
    assert "pip install 'stepscore[plots]'" in done.stderr


def test_probabilities_that_are_all_alike_are_warned_of(path: Path, tmp_path: Path) -> None:
    done = plot("calibration", path, "-o", tmp_path / "f.csv", "--temperature", "1000")
    assert "warning: one: all probabilities are near 0.50; give a --temperature" in done.stderr


def test_steps_outside_of_the_axis_are_counted() -> None:
    scores = [np.array([*np.linspace(0, 1, 998), -99.0, 99.0])]
    figure = StepRewardPlot(Series.STEP, ((Origin("a", Provenance()), rewards_by_label(scores, [-1])),))
    assert "a: 10 of 1,000 steps lie outside of the axis" in list(figure.remarks())
    rows = figure.tables()[0].records()
    assert sum(row["num_steps"] for row in rows if row["steps"] == "correct") == 1000
