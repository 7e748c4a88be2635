"""`score --dry-run` and what `inspect` says of memory: the truth about a run, without a model."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from testing.manifests import CODED, WEIGHT_BITS, cuda_manifest, manifest
from testing.pairs import PairOf
from testing.watched import Watched

from stepscore.artifact.pair import Pair
from stepscore.cli.dry_run import PlanTally, plan_run
from stepscore.cli.dry_run import facts as facts_of
from stepscore.cli.main import main
from stepscore.cli.memory_facts import memory_facts
from stepscore.cli.run_time import NotMeasured, Sample, Speed, reason_not_to_measure
from stepscore.engine.base import Engine
from stepscore.enums import Convention, Precision, Provider, Residency, Target
from stepscore.errors import ProviderUnavailable
from stepscore.jobs.job import JobOptions
from stepscore.jobs.jsonl import parse_line
from stepscore.memory.cards import CARDS
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.gpu import stage_sizes
from stepscore.memory.peak import PeakLoad
from stepscore.memory.settings import BATCH_TOKENS, CUDA_BATCH_TOKENS
from stepscore.records import Record

ENOUGH = 10**12
LINES = [
    f'{{"id": "{problem}-{sample}", "problem": "How many pens are in {problem} boxes of 12?", '
    f'"steps": ["12 pens a box.", "So {12 * problem + sample}."]}}'
    for sample in range(3)
    for problem in range(2)
]
BAD = [
    "{",
    "null",
    '{"id": "none", "problem": "p", "steps": []}',
    '{"id": "long", "problem": "p", "steps": ["' + "x" * 2000 + '"]}',
    LINES[0],
]


def facts(pair: Path, lines: list[str], limit: int | None = None, **load: object) -> dict[str, str]:
    """What is said of these lines, by name."""
    options: dict[str, object] = {
        "convention": Convention.CARD,
        "residency": Residency.AUTO,
        "memory_limit": ENOUGH,
        "max_batch_tokens": None,
        "window_tokens": None,
        "provider": Provider.AUTO,
        "prefix_cache": None,
        "tokens": False,
    }
    source = io.BytesIO("".join(line + "\n" for line in lines).encode())
    planned = plan_run(pair, source, JobOptions(limit), options | load, PlanTally())
    return dict(facts_of(planned, NotMeasured("not asked for")))


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,]*\d(?:\.\d+)?", text)]


def records(lines: list[str]) -> list[Record]:
    parsed = [parse_line(line.encode(), index).record for index, line in enumerate(lines)]
    return [record for record in parsed if isinstance(record, Record)]


@pytest.mark.parametrize(
    "cut", [{}, {"max_batch_tokens": 170}, {"max_batch_tokens": 170, "window_tokens": 450}], ids=str
)
def test_dry_run_counts_equal_those_of_a_run(
    tiny_pair: Path, tiny_engine: Engine, cut: dict[str, int]
) -> None:
    """What samples of one problem share is computed once, if it is in one batch."""
    said = facts(tiny_pair, LINES, **cut)
    watched = Watched(tiny_pair, tiny_engine, memory_limit=ENOUGH, **cut)
    results = watched.scorer.score(records(LINES))
    lengths = [result.num_tokens for result in results]
    assert said["records"] == "6"
    assert numbers(said["tokens"]) == [sum(lengths), max(lengths)]
    assert numbers(said["computed"]) == [
        watched.engine.rows(),
        round(100 * watched.engine.rows() / sum(lengths)),
    ]
    batches = sum(len(window) for window in watched.engine.windows)
    assert numbers(said["batches"]) == [batches, len(watched.engine.windows)]
    assert watched.engine.rows() < sum(lengths)
    pair = Pair.open(tiny_pair)
    settings = fit_settings(pair.manifest, memory_limit=ENOUGH, **cut)
    needed = estimate(pair.manifest, settings, PeakLoad.of(watched.engine.windows)).total
    assert numbers(said["memory"]) == pytest.approx([needed / 1e9], abs=0.006)


def test_errors_are_counted_by_code_and_have_no_tokens(tiny_pair: Path) -> None:
    said, good = facts(tiny_pair, [*BAD[:4], *LINES, BAD[4]]), facts(tiny_pair, LINES)
    counts = ["1 duplicate_id", "1 invalid_json", "1 invalid_record", "1 no_steps", "1 too_long"]
    assert said["records"] == ", ".join(["11", *counts])
    for name in ("tokens", "computed", "batches", "memory"):
        assert said[name] == good[name]


def test_a_limit_of_lines_is_kept(tiny_pair: Path) -> None:
    assert facts(tiny_pair, LINES, limit=2) == facts(tiny_pair, LINES[:2])


@pytest.mark.parametrize("lines", [[], BAD[:3]], ids=["nothing", "errors"])
def test_dry_run_without_records_has_no_batches(tiny_pair: Path, lines: list[str]) -> None:
    said = facts(tiny_pair, lines)
    assert numbers(said["records"])[0] == len(lines)
    assert numbers(said["tokens"]) == [0, 0]
    assert {"computed", "batches"} & said.keys() == set()


def test_the_settings_are_those_of_a_run(tiny_pair: Path) -> None:
    said = facts(tiny_pair, LINES, residency=Residency.STREAM, max_batch_tokens=77, window_tokens=1234)
    assert said["settings"] == "stream, batches of 77 tokens, windows of 1,234, head in chunks of 77 tokens"


def test_dry_run_of_a_cuda_pair_names_gpu_memory_and_what_each_card_does(pair_of: PairOf) -> None:
    pair = pair_of(Precision.FP16, Target.CUDA)
    said = facts(pair, LINES)
    assert said["memory"].endswith("of the GPU's memory, estimated peak")
    assert {f"{card.name}, {card.gigabytes:g} GB" for card in CARDS} <= said.keys()
    assert all(said[f"{card.name}, {card.gigabytes:g} GB"].endswith("(estimated)") for card in CARDS)


def test_dry_run_of_a_cuda_pair_on_the_cpu_names_the_memory_of_the_process(pair_of: PairOf) -> None:
    pair = pair_of(Precision.FP16, Target.CUDA)
    on_gpu, on_cpu = facts(pair, LINES), facts(pair, LINES, provider=Provider.CPU)
    assert "GPU" not in on_cpu["memory"]
    assert set(on_gpu) - set(on_cpu) == {f"{card.name}, {card.gigabytes:g} GB" for card in CARDS}


@pytest.mark.parametrize("form", WEIGHT_BITS)
def test_inspect_of_a_cuda_pair_estimates_both_ends_and_every_card(form: str) -> None:
    """Resident and stream: partial is what lies between them."""
    first, second, *cards = memory_facts(cuda_manifest(form))
    for residency, (name, text) in zip(("resident", "stream"), (first, second), strict=True):
        assert name == "memory"
        assert text.startswith(f"{residency}: ")
        assert text.endswith(" of the GPU's memory")
        large, tokens, small, fewer = numbers(text)
        assert (tokens, fewer) == (CUDA_BATCH_TOKENS, CUDA_BATCH_TOKENS // 8)
        assert large > small > 0
    assert [name for name, _ in cards] == [f"{card.name}, {card.gigabytes:g} GB" for card in CARDS]


def test_the_settings_of_a_partial_run_say_how_many_stages_stay(pair_of: PairOf) -> None:
    """As many as fit: less than all of them beside what the GPU takes by itself."""
    pair = pair_of(Precision.FP16, Target.CUDA)
    manifest = Pair.open(pair).manifest
    stages = len(stage_sizes(manifest))
    resident = fit_settings(manifest, residency=Residency.RESIDENT, max_batch_tokens=128)
    limit = estimate(manifest, resident).total - 1
    asked = {"residency": Residency.PARTIAL, "max_batch_tokens": 128, "memory_limit": limit}
    kept = fit_settings(manifest, **asked).resident_stages
    assert 0 < kept < stages
    settings = facts(pair, LINES, **asked)["settings"]
    assert settings.startswith(f"partial, {kept} stages resident, batches of 128 tokens, ")


@pytest.mark.parametrize("difference", [None, *CODED.values()], ids=["independent", *CODED])
def test_inspect_estimates_every_residency_at_two_batch_sizes(difference: object) -> None:
    pair = manifest(difference=difference)  # type: ignore[arg-type]
    residencies = ["resident", "alternate", "stream"] if difference is None else ["resident", "stream"]
    said = list(memory_facts(pair))
    assert [name for name, _ in said] == ["memory"] * len(residencies)
    for residency, (_, text) in zip(residencies, said, strict=True):
        assert text.startswith(f"{residency}: ")
        large, tokens, small, fewer = numbers(text)
        assert (tokens, fewer) == (BATCH_TOKENS, BATCH_TOKENS // 8)
        assert large > small > 0


# The command


def test_a_dry_run_writes_nothing(tiny_pair: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join([*LINES, *BAD]))
    done = CliRunner().invoke(
        main, ["score", str(tiny_pair), str(source), "--dry-run", "-o", str(tmp_path / "out")]
    )
    assert done.exit_code == 0
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["records", "tokens", "computed", "batches", "settings", "memory", "time"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_a_dry_run_reads_a_pipe(tiny_pair: Path) -> None:
    given = "\n".join(LINES)
    done = CliRunner().invoke(main, ["score", str(tiny_pair), "-", "--dry-run", "--quiet"], input=given)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "records" in done.stdout


def test_a_dry_run_refuses_what_a_run_refuses(tiny_pair: Path) -> None:
    for arguments in (["no/such/pair"], [str(tiny_pair), "--memory-limit", "1MB"]):
        done = CliRunner().invoke(main, ["score", *arguments, "-", "--dry-run"], input=LINES[0])
        assert (done.exit_code, done.stdout) == (3, "")
        assert "\nhint: " in done.stderr


def test_inspect_prints_what_scoring_takes(tiny_pair: Path) -> None:
    shown = CliRunner().invoke(main, ["inspect", str(tiny_pair)]).stdout
    assert [residency in shown for residency in ("resident: ", "alternate: ", "stream: ")] == [True] * 3


# Time


def test_the_time_of_a_run_is_that_of_loading_its_windows_and_its_tokens() -> None:
    speed = Speed(load_seconds=5.0, window_seconds=2.0, token_seconds=0.5, records=3, tokens=90)
    found = speed.of_run(windows=10, computed=100, tokens=140)
    assert (found.seconds, found.tokens_per_second) == (75.0, 2.0)
    assert (found.measured_records, found.measured_tokens) == (3, 90)


def test_a_sample_holds_the_first_records_and_at_least_one() -> None:
    sample = Sample(most_tokens=10)
    for name, tokens in (("long", 30), ("next", 4)):
        sample.add(name, tokens)
    assert sample.records == ["long"]
    assert sample.first(1) == 1


def test_no_pair_is_loaded_where_memory_is_short_or_nothing_can_be_scored(tiny_pair: Path) -> None:
    settings = fit_settings(Pair.open(tiny_pair).manifest)
    full = Sample(99, [Record("p", ("s",))], [5])
    assert reason_not_to_measure(full, 1, settings) is None
    assert "no record can be scored" in str(reason_not_to_measure(Sample(), 1, settings))
    assert "GB of memory are free" in str(reason_not_to_measure(full, 10**18, settings))


def test_a_machine_that_cannot_run_the_pair_gives_a_plan_without_a_time(
    tiny_pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ProviderUnavailable("no such GPU")

    monkeypatch.setattr("stepscore.scorer.open_engine", fail)
    done = CliRunner().invoke(main, ["score", str(tiny_pair), "-", "--dry-run"], input=LINES[0])
    assert done.exit_code == 0
    assert "not measured: no such GPU" in done.stdout
