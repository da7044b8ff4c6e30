from __future__ import annotations

import itertools

import numpy as np

from jetfoundry.data.dealing import Range, deal
from jetfoundry.data.inventory import Source
from jetfoundry.evaluate.mixing import class_mix


def _source(path: str, entries: int, cluster: int, group: str = "") -> Source:
    edges = (*range(0, entries, cluster), entries)
    return Source(
        path=path, kind="ttree", tree="tree", entries=entries, clusters=edges, bytes_per_jet=1, sample="", size=1,
        mtime_ns=1, group=group,
    )  # fmt: skip


def _table(units: list[tuple[Range, ...]], sources: list[Source]) -> np.ndarray:
    """Entries of each file in each unit (U, F); checks that every entry is in one range of one unit."""
    table = np.zeros((len(units), len(sources)), int)
    for number, unit in enumerate(units):
        for part in unit:
            table[number, part.file] += part.stop - part.start
    parts = sorted((part for unit in units for part in unit), key=lambda r: (r.file, r.start))
    for file, own in itertools.groupby(parts, key=lambda r: r.file):
        own = list(own)
        assert own[0].start == 0
        assert own[-1].stop == sources[file].entries
        assert all(a.stop == b.start for a, b in itertools.pairwise(own))
    return table


def _decodings(units: list[tuple[Range, ...]], sources: list[Source]) -> float:
    """How often a cluster is decoded, on average: once by each unit that holds some of it."""
    touched = set()
    for number, part in ((number, part) for number, unit in enumerate(units) for part in unit):
        edges = np.asarray(sources[part.file].clusters)
        first, last = np.searchsorted(edges, part.start, "right") - 1, np.searchsorted(edges, part.stop, "left")
        touched |= {(number, part.file, cluster) for cluster in range(first, last)}
    return len(touched) / sum(len(source.clusters) - 1 for source in sources)


def test_small_numbers_by_hand():
    sources = [_source("/in/a_0.root", 2, 1), _source("/in/a_1.root", 2, 1), _source("/in/b.root", 2, 1)]
    one, two = deal(sources, 2, per_unit=3, chunk=1)
    assert len(one) == len(two) == 3
    assert _table([one, two], sources).sum(axis=0).tolist() == [2, 2, 2]
    assert all(sum(r.file < 2 for r in unit) == 2 for unit in (one, two))
    assert all(sum(r.file == 2 for r in unit) == 1 for unit in (one, two))


def test_files_of_different_names_are_dealt_to_the_entry_whatever_their_clusters():
    sizes = {"QCD": 40_100, "Hbb": 20_003, "Hcc": 19_999, "Wqq": 9_000, "Zqq": 11_000}
    sources = [_source(f"/in/{name}.root", n, 700) for name, n in sizes.items()]
    table = _table(deal(sources, 10, per_unit=10_000), sources)
    assert len(table) == 10
    assert np.abs(table - np.array(list(sizes.values())) / 10).max() < 1
    assert np.ptp(table.sum(axis=1)) <= len(sizes)


def test_numbered_files_share_one_quota_and_are_hardly_read_twice():
    sources = [_source(f"/in/{name}_{i:03d}.root", 2000, 2000) for name in ("QCD", "Res2P") for i in range(50)]
    units = deal(sources, 4, per_unit=50_000)
    table = _table(units, sources)
    assert table.sum(axis=1).tolist() == [50_000] * 4
    assert table[:, :50].sum(axis=1).tolist() == [25_000] * 4
    assert _decodings(units, sources) < 1.1


def test_groups_and_folders_count_as_names():
    for names in (
        [("/a/1.root", ""), ("/b/2.root", "")],
        [("/a/1.root", "signal"), ("/a/2.root", "background")],
    ):
        sources = [_source(path, 5_000, 100, group) for path, group in names]
        assert (_table(deal(sources, 5, per_unit=2000), sources) == 1000).all()


def test_a_file_sorted_by_class_is_spread_over_all_units():
    sources = [_source("sorted.root", 200_000, 1000)]
    for unit in deal(sources, 10, per_unit=20_000):
        middles = np.array([(r.start + r.stop) / 2 for r in unit])
        assert len(unit) >= 20
        assert np.histogram(middles, bins=4, range=(0, 200_000))[0].min() >= 4


def test_files_with_as_many_clusters_as_units_and_sorted_inside_do_not_give_units_of_one_class():
    sources = [_source(f"f_{i}.root", 10_000, 1000) for i in range(40)]  # class = cluster number, say
    for unit in deal(sources, 10, per_unit=40_000):
        classes = np.bincount([r.start // 1000 for r in unit], minlength=10)
        assert classes.max() <= 12  # of 40; a fixed turn would give 40


def test_a_large_cluster_is_cut_but_not_below_a_quarter():
    sources = [_source(f"{name}.root", 100_000, 20_000) for name in "abcdefgh"]
    units = deal(sources, 26, per_unit=31_000)
    assert _decodings(units, sources) <= 4 + 20_000 / (100_000 / 26)
    assert max(r.stop - r.start for unit in units for r in unit) <= 5000


_FAMILIES = ["QCD"] * 25 + ["Res2P_charged"] * 10 + ["Res2P_neutral"] * 30 + ["Res34P"] * 35


def test_usual_inputs_are_decoded_little_more_than_once():
    found = {}
    for cluster in (2000, 3000, 5000):
        for lines, names in {1: ["jets"] * 100, 4: _FAMILIES}.items():
            found[cluster, lines] = [_source(f"{name}_{i:04d}.root", cluster, cluster) for i, name in enumerate(names)]
    found |= {
        (1000, n): [_source(f"{'abcdefghijkl'[i * n // 12]}_{i}.root", 20_000, 1000) for i in range(12)]
        for n in (1, 4, 12)
    }
    decoded = {}
    for case, sources in found.items():
        total = sum(source.entries for source in sources)
        count = -(-total // 49_000)  # 256 MB of 5.4 kB
        decoded[case] = _decodings(deal(sources, count, per_unit=-(-total // count)), sources)
    assert np.mean(list(decoded.values())) < 1.15
    assert max(decoded.values()) < 1.45, decoded
    assert sum(value > 1.2 for value in decoded.values()) <= 1, decoded


def _fairness(sources: list[Source], per_unit: int, chunk: int = 0) -> np.ndarray:
    """p values of the class mix of shards of 10,000 drawn from the units, if each file holds one class."""
    total = sum(source.entries for source in sources)
    units = deal(sources, -(-total // per_unit), per_unit=per_unit, chunk=chunk)
    rng, drawn = np.random.default_rng(0), []
    for left in _table(units, sources):
        for _ in range(left.sum() // 10_000):
            drawn.append(rng.multivariate_hypergeometric(left, 10_000))
            left = left - drawn[-1]
    return class_mix(np.array(drawn))


def test_class_pure_files_with_large_clusters_are_fair_with_one_of_the_three_remedies_only():
    alike = [_source(f"jets_{i:03d}.root", 5000, 5000) for i in range(100)]
    named = [_source(f"{a}{b}.root", 5000, 5000) for a in "abcdefghij" for b in "abcdefghij"]
    assert _fairness(alike, 48_000).max() < 1e-100  # as the head of dealing.py says
    for p in (
        _fairness(named, 250_000),  # names, and quotas above a quarter of a cluster
        _fairness(alike, 500_000),  # one unit
        _fairness(alike, 48_000, chunk=20),
        _fairness(named, 48_000, chunk=200),
    ):
        assert p.min() > 0.01 / len(p)
        assert np.median(p) > 0.2


def test_many_tiny_lines_are_joined_and_every_unit_is_as_large_as_the_others():
    names = [f"{a}{b}" for a in "abcdefghijklmnopqrstuvwxyz" for b in "abcdefgh"]
    sources = [_source(f"{name}.root", 300, 300) for name in names]
    table = _table(deal(sources, 20, per_unit=3120), sources)
    assert len(table) == 20
    assert table.sum(axis=1).tolist() == [3120] * 20


def test_less_data_than_one_piece_per_unit_still_loses_nothing():
    sources = [_source("a.root", 150, 50), _source("b.root", 7, 7)]
    assert _table(deal(sources, 3, per_unit=60), sources).sum() == 157


def test_the_seed_changes_the_draws_and_nothing_else_does():
    sources = [_source(f"a_{i}.root", 5000, 500) for i in range(4)]
    assert deal(sources, 5, per_unit=4000) == deal(sources, 5, per_unit=4000)
    assert deal(sources, 5, per_unit=4000) != deal(sources, 5, per_unit=4000, seed=1)
