"""Cuts of a sorted batch: no other cuts within the same memory make less padding."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from jetfoundry.loading.cuts import PAIR_COST, equal_cuts, least_padding


def work(bounds, lengths):
    """Work of each part, in slots."""
    return [(end - begin) * (lengths[end - 1] + PAIR_COST * lengths[end - 1] ** 2) for begin, end in pairwise(bounds)]


def test_one_long_jet_is_put_apart():
    assert least_padding(np.array([10, 10, 11, 11, 12, 90]), 2).tolist() == [0, 5, 6]
    assert equal_cuts(6, 2).tolist() == [0, 3, 6]


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_of_all_cuts_within_the_memory_of_equal_ones_these_make_least_work(parts):
    rng = np.random.default_rng(parts)
    for _ in range(50):
        lengths = np.sort(rng.integers(1, 60, 8))
        bound = max(work(equal_cuts(8, parts), lengths))
        inner = [cut for number in range(parts) for cut in combinations(range(1, 8), number)]
        every = [work((0, *cut, 8), lengths) for cut in inner]
        best = min(sum(each) for each in every if max(each) <= bound)
        found = work(least_padding(lengths, parts), lengths)
        assert max(found) <= bound
        assert sum(found) <= 1.1 * best  # not every place is tried


@pytest.mark.parametrize(("jets", "parts"), [(1, 1), (1, 4), (5, 5), (5, 8), (64, 4), (7, 1)])
def test_every_jet_is_in_one_part_and_there_are_not_more_parts_than_asked_for(jets, parts):
    for lengths in (np.full(jets, 3), np.arange(jets)):  # a jet may be empty
        bounds = least_padding(lengths, parts)
        assert (bounds[0], bounds[-1]) == (0, jets)
        assert (np.diff(bounds) > 0).all()
        assert len(bounds) - 1 <= min(parts, jets)


def test_jets_of_equal_length_are_cut_all_the_same_where_memory_asks_for_it():
    assert np.diff(least_padding(np.full(64, 20), 4)).max() == 16
