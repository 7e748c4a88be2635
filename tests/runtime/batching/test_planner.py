"""Planning: every sequence is in one group, groups keep their budgets, nothing shared is computed twice."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.windows import BUDGETS, SHARE, Ids, Prefix, prefix_of_each_row, prefixes, small_limits, windows

from stepscore.batching import planner as plan_module
from stepscore.batching.batch import BatchGroup, pack
from stepscore.batching.planner import MAX_PADDING, plan


@pytest.fixture(scope="module", autouse=True)
def _small_limits() -> Iterator[None]:
    with small_limits():
        yield


def rows_in(groups: list[BatchGroup]) -> int:
    return sum(len(group.batch.input_ids) for group in groups)


@given(windows(min_size=0), BUDGETS, SHARE)
def test_every_sequence_is_a_member_of_one_group(
    drawn: tuple[list[Ids], list[int]], budget: int, share: bool
) -> None:
    groups = plan(*drawn, budget, share=share)
    assert sorted(member for group in groups for member in group.members) == list(range(len(drawn[0])))
    assert [len(group.members) for group in groups] == [len(group.batch.target_of) for group in groups]


@given(windows(), BUDGETS, SHARE)
def test_a_group_is_its_members_packed(drawn: tuple[list[Ids], list[int]], budget: int, share: bool) -> None:
    """But for the order of the lines, which is that of the whole window."""
    sequences, starts = drawn
    for group in plan(*drawn, budget, share=share):
        members = [sequences[member] for member in group.members]
        packed = pack(members, [starts[member] for member in group.members], share=share)
        assert sorted(prefix_of_each_row(group.batch)) == sorted(prefix_of_each_row(packed))
        for pairs, expected in zip(group.batch.target_of, packed.target_of, strict=True):
            assert np.array_equal(group.batch.target_ids[pairs], packed.target_ids[expected])
        assert len(group.batch.target_ids) == len(packed.target_ids)


@given(windows(), BUDGETS, SHARE)
def test_groups_keep_their_budgets_or_have_one_padded_row(
    drawn: tuple[list[Ids], list[int]], budget: int, share: bool
) -> None:
    for group in plan(*drawn, budget, share=share):
        count, width = group.batch.pad_index.shape
        is_short = width <= plan_module.SHORT_TOKENS
        assert len(group.batch.input_ids) <= budget or count == 1
        assert count * width <= MAX_PADDING * budget or count == 1
        assert not is_short or count * width * width <= plan_module.MAX_SCORES or count == 1


@given(windows(), BUDGETS, SHARE)
def test_attention_scores_limit_groups_only_if_materialized(
    drawn: tuple[list[Ids], list[int]], budget: int, share: bool
) -> None:
    groups, fewer = (plan(*drawn, budget, share=share, materializes_scores=holds) for holds in (True, False))
    assert len(fewer) <= len(groups)
    for group in fewer:
        assert len(group.batch.input_ids) <= budget or len(group.batch.pad_index) == 1


@given(windows(), BUDGETS, SHARE)
def test_long_and_short_sequences_are_never_in_one_group(
    drawn: tuple[list[Ids], list[int]], budget: int, share: bool
) -> None:
    for group in plan(*drawn, budget, share=share):
        assert len({len(drawn[0][member]) > plan_module.SHORT_TOKENS for member in group.members}) == 1


@given(windows(), BUDGETS, SHARE)
def test_groups_are_in_the_order_of_their_first_members(
    drawn: tuple[list[Ids], list[int]], budget: int, share: bool
) -> None:
    groups = plan(*drawn, budget, share=share)
    assert all(list(group.members) == sorted(group.members) for group in groups)
    assert [group.members[0] for group in groups] == sorted(group.members[0] for group in groups)


@given(windows(), BUDGETS)
def test_sharing_never_computes_more(drawn: tuple[list[Ids], list[int]], budget: int) -> None:
    assert (
        rows_in(plan(*drawn, budget)) <= sum(map(len, drawn[0])) == rows_in(plan(*drawn, budget, share=False))
    )


@given(windows())
def test_unlimited_budget_computes_no_prefix_twice(drawn: tuple[list[Ids], list[int]]) -> None:
    sequences, _ = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "MAX_SCORES", 1 << 20)
        groups = plan(*drawn, max_tokens=1000)
    kinds = [[each for each in sequences if (len(each) > 6) == is_long] for is_long in (False, True)]
    assert rows_in(groups) == sum(len(prefixes(kind)) for kind in kinds)
    assert len(groups) == sum(1 for kind in kinds if kind)


@given(windows(), BUDGETS, st.randoms(use_true_random=False))
def test_window_order_changes_no_score(
    drawn: tuple[list[Ids], list[int]], budget: int, shuffle: random.Random
) -> None:
    """With one group a kind even in the same rows; where groups are cut depends on the order."""
    order = list(range(len(drawn[0])))
    shuffle.shuffle(order)
    shuffled = [drawn[0][index] for index in order], [drawn[1][index] for index in order]
    for one, other, of in (
        (plan(*drawn, budget), plan(*shuffled, budget), drawn_pairs),
        (plan(*drawn, 1000), plan(*shuffled, 1000), drawn_pairs),
        ([BatchGroup((), pack(*drawn))], [BatchGroup((), pack(*shuffled))], drawn_rows),
    ):
        assert of(one) == of(other)


def drawn_pairs(groups: list[BatchGroup]) -> set[tuple[Prefix, int]]:
    return {
        (rows[batch.score_index[row]], int(token))
        for batch in (group.batch for group in groups)
        for rows in [prefix_of_each_row(batch)]
        for row, token in zip(batch.target_rows, batch.target_ids, strict=True)
    }


def drawn_rows(groups: list[BatchGroup]) -> list[Prefix]:
    return sorted(prefix for group in groups for prefix in prefix_of_each_row(group.batch))


@given(windows(), BUDGETS)
def test_a_group_ends_only_where_the_next_sequence_does_not_fit(
    drawn: tuple[list[Ids], list[int]], budget: int
) -> None:
    """Without sharing, where the next sequence is known: the next of its kind in the window."""
    sequences = drawn[0]
    groups = plan(*drawn, budget, share=False)
    for is_long in (False, True):
        of_kind = [group for group in groups if (len(sequences[group.members[0]]) > 6) == is_long]
        for group, following in itertools.pairwise(of_kind):
            lengths = [len(sequences[member]) for member in (*group.members, following.members[0])]
            padded = len(lengths) * max(lengths)
            scores = 0 if is_long else padded * max(lengths)
            assert sum(lengths) > budget or padded > MAX_PADDING * budget or scores > plan_module.MAX_SCORES


def test_sequences_with_a_common_prefix_are_grouped_from_any_position() -> None:
    problems = [np.array([problem] * 4) for problem in range(5)]
    window = [np.append(problem, sample) for sample in range(4) for problem in problems]
    groups = plan(window, [0] * len(window), max_tokens=8)
    assert [group.members for group in groups] == [(p, p + 5, p + 10, p + 15) for p in range(5)]
    assert rows_in(groups) == 5 * (4 + 4)


def test_an_empty_window_has_no_groups() -> None:
    assert plan([], [], 100) == []
