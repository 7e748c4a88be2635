"""Packing and planning: every distinct prefix is computed once, everything is found again, budgets hold."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from testing.checkpoints import TINY
from testing.forms import INTEGER
from testing.hypothesis_profiles import examples
from testing.pairs import PairOf

from stepscore.artifact.pair import Pair
from stepscore.batching import planner as plan_module
from stepscore.batching.batch import Batch, BatchGroup, chunks, pack
from stepscore.batching.planner import MAX_PADDING, plan
from stepscore.engine.ort.engine import OrtEngine

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Prefix = tuple[int, ...]


@st.composite
def windows(draw: st.DrawFn, min_size: int = 1) -> tuple[list[Ids], list[int]]:
    """Sequences of 2 to 12 of three tokens, so that most share a beginning, and where each is scored from."""
    texts = draw(st.lists(st.text("789", min_size=2, max_size=12), min_size=min_size, max_size=12))
    for text in draw(st.lists(st.sampled_from(texts), max_size=4)) if texts else []:
        texts.append(text[: draw(st.integers(2, len(text)))])  # the same, or its beginning
    starts = [draw(st.integers(0, len(text) - 2)) for text in texts]
    return [np.array([int(token) for token in text]) for text in texts], starts


BUDGETS = st.integers(1, 60)
SHARE = st.booleans()


@pytest.fixture(scope="module", autouse=True)
def _small_limits() -> Iterator[None]:
    """Short is up to 6 tokens here, so that both kinds are drawn and the scores of short ones are a limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "SHORT_TOKENS", 6)
        patch.setattr(plan_module, "MAX_SCORES", 120)
        yield


def prefixes(sequences: Sequence[Ids]) -> set[Prefix]:
    return {tuple(each[:end].tolist()) for each in sequences for end in range(1, len(each) + 1)}


def lines_of(batch: Batch) -> list[Ids]:
    """The rows of each line of the padded view, without the padding."""
    return [path[: last + 1] for path, last in zip(batch.pad_index, batch.seqlens_k, strict=True)]


def prefix_of_each_row(batch: Batch) -> list[Prefix]:
    found: dict[int, Prefix] = {}
    for line in lines_of(batch):
        for end in range(1, len(line) + 1):
            prefix = tuple(batch.input_ids[line[:end]].tolist())
            assert found.setdefault(int(line[end - 1]), prefix) == prefix
    return [found[row] for row in range(len(batch.input_ids))]


def is_prefix(one: Ids, other: Ids) -> bool:
    return np.array_equal(one, other[: len(one)])


# Pack


@given(windows())
def test_pack_gives_one_row_per_distinct_prefix(drawn: tuple[list[Ids], list[int]]) -> None:
    rows = prefix_of_each_row(pack(*drawn))
    assert len(rows) == len(set(rows))
    assert set(rows) == prefixes(drawn[0])


@given(windows())
def test_padded_rows_are_sequences_that_prefix_no_other(
    drawn: tuple[list[Ids], list[int]],
) -> None:
    sequences, _ = drawn
    batch = pack(*drawn)
    lines = [tuple(batch.input_ids[line].tolist()) for line in lines_of(batch)]
    distinct = {tuple(each.tolist()) for each in sequences}
    ends = [
        one for one in distinct if not any(one != other and one == other[: len(one)] for other in distinct)
    ]
    assert sorted(lines) == sorted(ends)
    assert batch.pad_index.shape[1] == max(map(len, lines))


@given(windows(), SHARE)
def test_unpad_inverts_pad(drawn: tuple[list[Ids], list[int]], share: bool) -> None:
    batch = pack(*drawn, share=share)
    assert np.array_equal(batch.pad_index.reshape(-1)[batch.unpad_index], np.arange(len(batch.input_ids)))
    lines, positions = np.divmod(batch.unpad_index, batch.pad_index.shape[1])
    assert (positions <= batch.seqlens_k[lines]).all()


@given(windows(), SHARE)
def test_batch_indices_have_the_types_of_the_graph(drawn: tuple[list[Ids], list[int]], share: bool) -> None:
    batch = pack(*drawn, share=share)
    assert batch.total_sequence_length == batch.seqlens_k.max() + 1
    assert (batch.total_sequence_length.dtype, batch.seqlens_k.dtype) == (np.int32, np.int32)
    rest = (batch.input_ids, batch.pad_index, batch.unpad_index, batch.score_index)
    for array in (*rest, batch.target_rows, batch.target_ids, *batch.target_of):
        assert array.dtype == np.int64


@given(windows(), SHARE)
def test_sequence_targets_are_its_tokens_after_the_start(
    drawn: tuple[list[Ids], list[int]], share: bool
) -> None:
    batch = pack(*drawn, share=share)
    rows = prefix_of_each_row(batch)
    for pairs, sequence, start in zip(batch.target_of, *drawn, strict=True):
        scored = [rows[row] for row in batch.score_index[batch.target_rows[pairs]]]
        assert scored == [tuple(sequence[:end].tolist()) for end in range(start + 1, len(sequence))]
        assert np.array_equal(batch.target_ids[pairs], sequence[start + 1 :])


@given(windows())
def test_every_target_is_scored_once_and_belongs_to_a_sequence(drawn: tuple[list[Ids], list[int]]) -> None:
    batch = pack(*drawn)
    assert np.array_equal(np.unique(batch.score_index), np.sort(batch.score_index))
    assert (np.diff(batch.target_rows) >= 0).all()
    assert np.array_equal(np.unique(batch.target_rows), np.arange(len(batch.score_index)))
    pairs = set(zip(batch.target_rows.tolist(), batch.target_ids.tolist(), strict=True))
    assert len(pairs) == len(batch.target_ids)
    assert np.array_equal(np.unique(np.concatenate(batch.target_of)), np.arange(len(batch.target_ids)))


@given(windows())
def test_padded_rows_follow_depth_first_trie_order(
    drawn: tuple[list[Ids], list[int]],
) -> None:
    """Depth first: two lines are in the order of the first sequences of the two branches where they part."""
    sequences, _ = drawn
    batch = pack(*drawn)
    lines = [batch.input_ids[line] for line in lines_of(batch)]
    for one, other in itertools.pairwise(lines):
        parted = int(np.flatnonzero(one[: len(other)] != other[: len(one)])[0]) + 1
        first, second = (
            min(index for index, each in enumerate(sequences) if is_prefix(line[:parted], each))
            for line in (one, other)
        )
        assert first < second


@given(windows())
def test_pack_without_sharing_gives_each_sequence_its_own_rows(drawn: tuple[list[Ids], list[int]]) -> None:
    sequences, _ = drawn
    batch = pack(*drawn, share=False)
    assert np.array_equal(batch.input_ids, np.concatenate(sequences))
    assert [len(line) for line in lines_of(batch)] == [len(sequence) for sequence in sequences]
    assert np.array_equal(np.concatenate(batch.target_of), np.arange(len(batch.target_ids)))
    assert np.array_equal(batch.target_rows, np.arange(len(batch.target_ids)))


@pytest.mark.parametrize(("length", "start"), [(1, 0), (0, 0), (5, 4), (5, -1)])
def test_start_without_logprob_is_rejected(length: int, start: int) -> None:
    for make in (pack, lambda *of: plan(*of, max_tokens=9)):
        with pytest.raises(ValueError, match="outside the log-probs"):
            make([np.arange(length)], [start])


def test_pack_rejects_no_sequences() -> None:
    with pytest.raises(ValueError, match="nothing to pack"):
        pack([], [])


# Plan


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


@pytest.mark.parametrize("lengths", [range(2, 3001), range(3000, 1, -1)], ids=["growing", "shrinking"])
def test_thousands_of_partial_solutions_are_one_padded_row(lengths: range) -> None:
    """Deeper than Python's recursion goes."""
    whole = np.random.default_rng(0).integers(0, 100, 3000)
    batch = pack([whole[:length] for length in lengths], [0] * len(lengths))
    assert batch.pad_index.shape[0] == 1
    assert len(batch.target_ids) == len(batch.input_ids) - 1 == 2999


def test_trie_of_a_thousand_branches_is_walked() -> None:
    stem = np.full(1500, 3)
    window = [np.append(stem[:length], 5) for length in range(1, 1501)]
    assert len(pack(window, [0] * 1500).input_ids) == 3000


def test_an_empty_window_has_no_groups() -> None:
    assert plan([], [], 100) == []


# Chunks


@given(windows(), st.integers(1, 9))
def test_chunks_together_are_the_whole_and_a_row_is_in_one(
    drawn: tuple[list[Ids], list[int]], max_rows: int
) -> None:
    batch = pack(*drawn)
    seen_rows: list[int] = []
    seen_pairs: list[tuple[int, int]] = []
    for part, rows, targets in chunks(batch, max_rows):
        assert 1 <= len(rows) <= max_rows
        assert part == slice(len(seen_pairs), len(seen_pairs) + len(targets))
        seen_rows += rows.tolist()
        seen_pairs += zip(rows[targets[:, 0]].tolist(), targets[:, 1].tolist(), strict=True)
    assert seen_rows == list(range(len(batch.score_index)))
    assert seen_pairs == list(zip(batch.target_rows.tolist(), batch.target_ids.tolist(), strict=True))


# Numbers


def scored_together_and_alone(
    engine: OrtEngine, drawn: tuple[list[Ids], list[int]], budget: int
) -> Iterator[tuple[Floats, Floats]]:
    """Log-probs [2, L-1] of each sequence, planned with the others and packed by itself."""
    groups = plan(*drawn, budget)
    for group, logprobs in zip(groups, engine.run([group.batch for group in groups]), strict=True):
        for member, pairs in zip(group.members, group.batch.target_of, strict=True):
            (alone,) = engine.run([pack([drawn[0][member]], [drawn[1][member]])])
            yield (
                np.stack([logprobs["policy"][pairs], logprobs["reference"][pairs]]),
                np.stack([alone["policy"], alone["reference"]]),
            )


@pytest.fixture(scope="module")
def engine(tiny_pair: Path) -> Iterator[OrtEngine]:
    engine = OrtEngine(Pair.open(tiny_pair))
    yield engine
    engine.close()


@examples(50)
@given(windows(), BUDGETS)
def test_planned_sequence_has_its_logprobs_alone(
    engine: OrtEngine, drawn: tuple[list[Ids], list[int]], budget: int
) -> None:
    for together, alone in scored_together_and_alone(engine, drawn, budget):
        assert np.abs(together - alone).max() < 1e-5


@pytest.mark.slow
def test_planned_logprobs_with_int8_activations_stay_within_the_pairs_error(pair_of: PairOf) -> None:
    """A row that is an ulp apart may round to the next code."""
    pair = Pair.open(pair_of.measured.form(INTEGER))
    fidelity = pair.manifest.fidelity
    assert fidelity is not None
    assert fidelity.ratio_error is not None
    tokens = np.random.default_rng(3).integers(0, TINY.vocab_size, (12, 40))
    tokens[1:8, :30] = tokens[0, :30]  # samples of one problem
    window = [
        row[:length]
        for row, length in zip(tokens, (40, 35, 40, 30, 20, 40, 33, 38, 9, 40, 2, 17), strict=True)
    ]
    engine = OrtEngine(pair)
    scores = zip(*scored_together_and_alone(engine, (window, [0] * 12), 150), strict=True)
    together, alone = (np.concatenate([each[0] - each[1] for each in some]) for some in scores)
    engine.close()
    assert rms(together - alone) < fidelity.ratio_error * rms(alone)


def rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
