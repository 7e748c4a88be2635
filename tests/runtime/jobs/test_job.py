"""A job answers every line once and in order, whatever stops it, and writes over nothing."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testing.fake_scorer import FakeScorer
from testing.hypothesis_profiles import examples
from testing.input_lines import BAD_LINES
from testing.outputs import answers, header_of, lines_of, stop_clock
from testing.shared_data import SHARED_DATA

from stepscore.errors import OutputExists, OutputUnwritable, ResumeMismatch, StepscoreError
from stepscore.jobs.job import JobOptions, Tally, run_to_file, run_to_stream
from stepscore.jobs.progress import progress_line, shown
from stepscore.jobs.seal import fingerprint_path
from stepscore.jobs.source import parsed_lines
from stepscore.records import Reading
from stepscore.scorer import Scorer


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_clock(monkeypatch)


FAKE = Path(__file__).parents[3] / "testing" / "fake_scorer.py"


def record(**fields: object) -> str:
    return json.dumps({"problem": "p", "steps": ["s"], **fields})


MIXED = [
    record(id="a", steps=["1", "2"], label=-1),
    record(id="b", steps=["3"]),
    "",
    "null",
    record(id="c", problem="nan"),
    record(id="a", steps=["5"]),
    record(steps=["6", "7"]),
    record(id="d", steps=[]),
    "{",
    record(id="e", problem="p" * 5000),
    record(id="ü", steps=["9"]),
    record(id="f", steps=None),
    record(id="g", steps=["10"]),
]


def as_input(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def streamed(data: bytes, scorer: FakeScorer | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    run_to_stream(scorer or FakeScorer(), io.BytesIO(data), out, Tally(), JobOptions(**options))
    return out.getvalue()


def run(path: Path, data: bytes, scorer: FakeScorer | None = None, **options: Any) -> Tally:
    tally = Tally()
    run_to_file(scorer or FakeScorer(), io.BytesIO(data), path, tally, JobOptions(**options))
    return tally


def command(source: Path, path: Path) -> list[str]:
    return [sys.executable, str(FAKE), "score", "fake", str(source), "-o", str(path)]


# One line answers one line


def test_every_line_is_answered_once_and_in_order() -> None:
    output = answers(streamed(as_input(MIXED)))
    assert [answer["id"] for answer in output] == ["a", "b", 2, "c", "a", 5, "d", 7, "e", "ü", "f", "g"]
    codes = [answer.get("error", {}).get("code") for answer in output]
    assert codes == [
        *(None, None, "invalid_record", "non_finite", "duplicate_id", None, "no_steps"),
        *("invalid_json", "too_long", None, "invalid_record", None),
    ]


def test_bad_lines_change_no_other_line() -> None:
    bad = {2, 4, 6, 7, 8, 10}
    with_bad = [line for index, line in enumerate(lines_of(streamed(as_input(MIXED)))) if index not in bad]
    lines = [line for line in MIXED if line]
    good = as_input([line for index, line in enumerate(lines) if index not in bad])
    renumbered = [line.replace(b'"id":5', b'"id":3') for line in with_bad]
    assert renumbered == lines_of(streamed(good))


@pytest.mark.parametrize("empty", ["", " \t", "\r", "\v\f "])
@pytest.mark.parametrize("at", [0, 1, len(MIXED)])
def test_an_empty_line_is_skipped_wherever_it_is(empty: str, at: int) -> None:
    assert streamed(as_input([*MIXED[:at], empty, *MIXED[at:]])) == streamed(as_input(MIXED))


def test_the_limit_counts_lines_that_are_not_empty() -> None:
    assert lines_of(streamed(as_input(MIXED), limit=3)) == lines_of(streamed(as_input(MIXED)))[:3]
    assert lines_of(streamed(as_input(MIXED), limit=0)) == []


def test_an_empty_input_gives_a_header_alone(tmp_path: Path) -> None:
    assert run(tmp_path / "out", b"").records == 0
    assert lines_of((tmp_path / "out").read_bytes()) == []


def test_the_tally_counts_records_errors_and_tokens(tmp_path: Path) -> None:
    tally = run(tmp_path / "out", as_input(MIXED))
    assert tally.records == len(MIXED) - 1
    assert tally.errors.total() == 7
    assert tally.errors["invalid_json"] == 1
    assert tally.tokens == sum(
        answer.get("num_tokens", 0) for answer in answers((tmp_path / "out").read_bytes())
    )


# Ids


def codes_of(*lines: str) -> list[str | None]:
    parsed = parsed_lines(io.BytesIO(as_input(list(lines))))
    return [getattr(line.record, "code", None) for line in parsed]


def test_the_second_line_with_an_id_is_a_duplicate() -> None:
    assert codes_of(record(id="a"), record(id="b"), record(id="a")) == [None, None, "duplicate_id"]


def test_ids_that_print_the_same_are_the_same() -> None:
    assert codes_of(record(id=7), record(id="7")) == [None, "duplicate_id"]


def test_a_record_without_an_id_claims_its_index() -> None:
    assert codes_of(record(), record(id=0)) == [None, "duplicate_id"]
    assert codes_of(record(id=1), record()) == [None, "duplicate_id"]


def test_a_bad_record_claims_the_id_it_gives() -> None:
    lines = [record(id="a", steps=1), record(id="a"), record()]
    assert codes_of(*lines) == ["invalid_record", "duplicate_id", None]


def test_a_line_without_a_readable_id_claims_none() -> None:
    assert codes_of("{", record(id=0)) == ["invalid_json", None]


def test_memory_does_not_grow_with_the_number_of_lines() -> None:
    def peak(count: int) -> int:
        class Lines(io.IOBase):
            source: Iterator[bytes] = (
                record(id=f"record-{index}").encode() + b"\n" for index in range(count)
            )

            def seekable(self) -> bool:
                return True  # as a file, which no thread reads ahead of its reader

            def readline(self, size: int | None = -1) -> bytes:
                return next(self.source, b"")

        tracemalloc.start()
        try:
            assert sum(1 for _ in parsed_lines(Lines())) == count  # type: ignore[arg-type]
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(6_000) < peak(1_000) + 100_000


# Resume


@settings(examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), window=st.integers(1, 5))
def test_an_output_cut_anywhere_is_completed_to_the_same_bytes(
    tmp_path: Path, data: st.DataObject, window: int
) -> None:
    whole = streamed(as_input(MIXED))
    cut = data.draw(st.integers(0, len(whole)))
    path = tmp_path / "out"
    path.unlink(missing_ok=True)
    run(path, as_input(MIXED))
    os.truncate(path, cut)
    scorer = FakeScorer(window=window)
    tally = run(path, as_input(MIXED), scorer)
    assert path.read_bytes() == whole
    assert tally.resumed == max(0, whole[:cut].count(b"\n") - 1)  # the first line is the header
    assert tally.errors.total() == 7
    codes = [answer.get("error", {}).get("code") for answer in answers(whole)]
    again = codes.count("non_finite")  # such a line does not say what was scored
    assert len(scorer.scored) == again + codes[tally.resumed :].count(None)


def test_a_complete_output_is_left_alone(tmp_path: Path) -> None:
    path, scorer = tmp_path / "out", FakeScorer()
    run(path, as_input(MIXED))
    before = path.stat().st_mtime_ns, path.read_bytes()
    tally = run(path, as_input(MIXED), scorer)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert tally.resumed == tally.records == len(MIXED) - 1
    assert [each.problem for each in scorer.scored] == ["nan"]


def test_an_input_that_grew_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "out"
    run(path, as_input(MIXED[:4]))
    assert run(path, as_input(MIXED)).resumed == 3
    assert path.read_bytes() == streamed(as_input(MIXED))


def test_the_header_stands_before_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "out"

    class Looking(FakeScorer):
        def stream(self, items: Any, *pace: Any) -> Any:
            assert header_of(path.read_bytes()).pair == "fake"
            assert lines_of(path.read_bytes()) == []
            return super().stream(items, *pace)

    run(path, as_input(MIXED), Looking())


def test_each_line_reaches_the_file_before_the_next_is_scored(tmp_path: Path) -> None:
    path = tmp_path / "out"

    class Stopping(FakeScorer):
        def stream(self, items: Any, *pace: Any) -> Any:
            for count, outcome in enumerate(super().stream(items, *pace)):
                assert len(lines_of(path.read_bytes())) == count
                yield outcome

    run(path, as_input(MIXED), Stopping())


MISMATCHES: dict[str, tuple[FakeScorer, dict[str, Any], str]] = {
    "beta": (FakeScorer(beta=0.05), {}, "beta was 0.001, now 0.05"),
    "field": (FakeScorer(), {"reading": Reading(steps_field="steps")}, "steps_field was not given"),
    "split": (FakeScorer(), {"reading": Reading(split=True)}, "split was not given, now yes"),
    "tokens": (FakeScorer(tokens=True), {"tokens": True}, "tokens was no, now yes"),
    "pair": (FakeScorer(pair="other"), {}, "pair was fake, now other"),
    "convention": (FakeScorer(convention="exact"), {}, "convention was card, now exact"),
}


@pytest.mark.parametrize(("scorer", "options", "difference"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_another_job_is_refused_by_the_name_of_the_difference(
    tmp_path: Path, scorer: FakeScorer, options: dict[str, Any], difference: str
) -> None:
    path = tmp_path / "out"
    run(path, as_input(MIXED[:3]))
    refused(path, as_input(MIXED), ResumeMismatch, difference, scorer, **options)


def refused(
    path: Path,
    data: bytes,
    error: type[StepscoreError],
    message: str,
    scorer: FakeScorer | None = None,
    **options: Any,
) -> None:
    """Check that a run is refused and that neither output nor seal is touched."""
    files = [path, fingerprint_path(path)]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files if file.exists()]
    scorer = scorer or FakeScorer()
    with pytest.raises(error, match=re.escape(message)) as raised:
        run(path, data, scorer, **options)
    assert raised.value.hint
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files if file.exists()] == before


@pytest.mark.parametrize("fingerprint", [None, b"", b"[]", b'{"pair":'])
def test_foreign_output_file_is_rejected(tmp_path: Path, fingerprint: bytes | None) -> None:
    path = tmp_path / "out"
    path.write_text("precious\n")
    if fingerprint is not None:
        fingerprint_path(path).write_bytes(fingerprint)
    refused(path, as_input(MIXED), OutputExists, "was not written by stepscore")


def test_empty_output_is_started_whatever_is_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.touch()
    fingerprint_path(path).write_text("{}")
    run(path, as_input(MIXED))
    assert path.read_bytes() == streamed(as_input(MIXED))


# Files


@pytest.mark.parametrize("alias", [None, "symlink", "hard link"])
def test_the_input_is_never_the_output(tmp_path: Path, alias: str | None) -> None:
    path = target = tmp_path / "in"
    path.write_bytes(as_input(MIXED))
    if alias is not None:
        target = tmp_path / "alias"
        (target.symlink_to if alias == "symlink" else target.hardlink_to)(path)
    with path.open("rb") as source, pytest.raises(OutputExists, match="the output is the input"):
        run_to_file(FakeScorer(), source, target, Tally())
    with path.open("rb") as source, path.open("ab") as out, pytest.raises(OutputExists):
        run_to_stream(FakeScorer(), source, out, Tally())
    assert path.read_bytes() == as_input(MIXED)


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    path = tmp_path / "out"

    class Second(FakeScorer):
        def stream(self, items: Any, *pace: Any) -> Any:
            with pytest.raises(OutputUnwritable, match="another run is writing"):
                run(path, as_input(MIXED))
            return super().stream(items, *pace)

    run(path, as_input(MIXED), Second())
    assert path.read_bytes() == streamed(as_input(MIXED))


@pytest.mark.parametrize("name", ["", "no/such/folder/out", "x" * 300])
def test_an_output_that_cannot_be_opened_says_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputUnwritable, match="cannot write"):
        run(tmp_path / name, as_input(MIXED))


@pytest.mark.slow
def test_full_disk_is_an_error_and_the_job_resumes_later(tmp_path: Path) -> None:
    path, source = tmp_path / "out", tmp_path / "in"
    source.write_bytes(as_input(MIXED))
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 1; exec "$@"', "", *command(source, path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "error: cannot write the output: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 3
    assert path.stat().st_size == 1024
    assert subprocess.run(command(source, path), capture_output=True, check=False).returncode == 1
    assert lines_of(path.read_bytes()) == lines_of(streamed(as_input(MIXED)))


# Kill


@pytest.mark.slow
def test_job_killed_repeatedly_answers_every_id_once(tmp_path: Path) -> None:
    source, path = tmp_path / "in", tmp_path / "out"
    lines = [record(id=f"r{index}", problem=f"p{index}") for index in range(30)]
    source.write_bytes(as_input(lines))
    slow = os.environ | {"FAKE_SECONDS": "0.05"}
    kills = 0
    for wanted in (4, 13, 22):
        process = subprocess.Popen(command(source, path), env=slow, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < wanted):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills
    subprocess.run(command(source, path), env=slow, check=True, capture_output=True)
    assert lines_of(path.read_bytes()) == lines_of(streamed(as_input(lines)))


# Progress


def test_progress_without_a_terminal_is_a_line_now_and_then() -> None:
    stream, tally = io.StringIO(), Tally()
    with shown(tally, 100, stream, log_seconds=0.01):
        tally.records = 7
        while "\n" not in stream.getvalue():
            time.sleep(0.005)
    assert re.match(r"stepscore: 7 of 100 records, 0 errors, 0 tokens/s, \d+ s left\n", stream.getvalue())


def test_progress_on_a_terminal_is_a_bar_that_ends_at_the_tally() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream, tally = Terminal(), Tally()
    with shown(tally, 100, stream):
        tally.records, tally.tokens = 40, 4000
        tally.errors["too_long"] = 2
    last = stream.getvalue().rsplit("\r", 1)[-1]
    assert "40/100" in last
    assert "2 errors" in last


def test_progress_without_a_known_end_names_none() -> None:
    assert progress_line(Tally(records=3), None, 1.0) == "3 records, 0 errors, 0 tokens/s"


@pytest.mark.parametrize(("records", "resumed"), [(0, 0), (5, 5), (9, 0)])
def test_progress_names_no_time_before_the_first_record_of_a_run_and_after_the_last(
    records: int, resumed: int
) -> None:
    assert "left" not in progress_line(Tally(records=records, resumed=resumed), 9, 1.0)


# The real scorer


def test_no_bad_line_changes_a_bit_of_another_lines_answer(tiny_pair: Path) -> None:
    good = [record(id=f"g{index}", steps=[f"{index} is {index}", "Done."]).encode() for index in range(60)]
    bad = [
        *(line for line, _ in BAD_LINES.values()),
        *(record(steps=steps).encode() for steps in ([], [""], ["a", " "], ["s."] * 10_000, ["s " * 50_000])),
        good[0],
    ]
    mixed = [line for pair in zip_longest(good, bad) for line in pair if line is not None]
    with Scorer.load(tiny_pair, max_batch_tokens=300) as scorer:
        alone, among = io.BytesIO(), io.BytesIO()
        run_to_stream(scorer, io.BytesIO(b"\n".join(good)), alone, Tally())
        run_to_stream(scorer, io.BytesIO(b"\n".join(mixed)), among, Tally())
    lines = lines_of(among.getvalue())
    assert len(lines) == sum(1 for line in mixed if line.strip())
    assert [line for line in lines if b'"error"' not in line] == lines_of(alone.getvalue())


def test_the_real_scorer_is_resumed_too(tiny_pair: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "out", as_input([record(id=index, steps=[f"{index}"]) for index in range(20)])
    with Scorer.load(tiny_pair, max_batch_tokens=300, tokens=True) as scorer:
        run_to_file(scorer, io.BytesIO(data), path, Tally(), JobOptions(tokens=True))
        whole = path.read_bytes()
        os.truncate(path, len(whole) * 2 // 3)
        run_to_file(scorer, io.BytesIO(data), path, Tally(), JobOptions(tokens=True))
    for before, after in zip(answers(whole), answers(path.read_bytes()), strict=True):
        assert before["token_ids"] == after["token_ids"]
        assert before["policy_logprobs"] == pytest.approx(after["policy_logprobs"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("through", ["stdin", "fifo"])
def test_interrupt_during_silent_input_ends_the_run(tiny_pair: Path, tmp_path: Path, through: str) -> None:
    """The thread that reads waits for a line then; neither closing the input nor exiting may."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    source = "-" if through == "stdin" else str(fifo)
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # nohup takes it away
    code = f"{heard}; from stepscore.cli.main import main; main()"
    full_at_once = ["--window-tokens", "1", "--max-batch-tokens", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "score", str(tiny_pair), source, *full_at_once],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    with process, process.stdin if through == "stdin" else fifo.open("wb") as silent:
        assert process.stdout is not None
        assert process.stderr is not None
        silent.write(as_input([record()]))
        silent.flush()
        assert b"stepscore" in process.stdout.readline()
        assert b"outcome_reward" in process.stdout.readline()  # the reader waits for the next line
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60) == 130
        finally:
            process.kill()
        assert b"interrupted after" in process.stderr.read()


# Real data


@pytest.mark.shared_data
@pytest.mark.skipif(SHARED_DATA is None, reason="no shared data")
@pytest.mark.parametrize("name", ["gsm8k_solutions", "math_best_of_8", "processbench_gsm8k"])
def test_every_line_of_the_real_data_is_a_record_and_keeps_its_other_fields(name: str) -> None:
    assert SHARED_DATA is not None
    data = (SHARED_DATA / f"{name}.jsonl").read_bytes()
    output = answers(streamed(data, FakeScorer(max_tokens=10**6)))
    given = [json.loads(line) for line in data.splitlines()]
    assert len(output) == len(given)
    assert not [answer for answer in output if "error" in answer]
    for fields, answer in zip(given, output, strict=True):
        passed = {key: value for key, value in fields.items() if key not in {"problem", "steps"}}
        assert {key: answer[key] for key in passed} == passed
