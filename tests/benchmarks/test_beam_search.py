"""The trace that the beam-search benchmark scores grows like a search."""

from __future__ import annotations

from itertools import pairwise

from benchmarks.beam_search import BEAMS, WIDTH, sampled, trace


def test_every_text_continues_one_of_at_most_two_of_the_round_before() -> None:
    solutions = [[f"{sample} step {k}" for k in range(2 + sample % 5)] for sample in range(BEAMS)]
    rounds = [each.outputs[0] for each in trace([("p", solutions)], 10)]
    assert len(rounds) == 6
    for before, after in pairwise(rounds):
        parents = {max((text for text in before if new.startswith(text)), key=len) for new in after}
        assert 1 <= len(parents) <= BEAMS // WIDTH
        assert all(parent.endswith("\n\n") for parent in parents)


def test_a_problem_whose_beams_are_done_leaves_the_search() -> None:
    rounds = trace([("short", [["a"]] * BEAMS), ("long", [["a", "b"]] * BEAMS)], 5)
    assert [each.questions for each in rounds] == [["short", "long"], ["long"]]


def test_there_are_solutions_to_build_a_trace_of() -> None:
    assert [len(solutions) for _, solutions in sampled(2)] == [BEAMS, BEAMS]
