from __future__ import annotations

import numpy as np
import pytest
import uproot

from jetfoundry.data.references import decode, resolve


def _trefarray(numbers: list[int]) -> list[int]:
    """As ROOT writes it: byte count, version, TObject, no name, size, lower bound, process, numbers."""
    size = len(numbers).to_bytes(4, "big").hex()
    body = bytes.fromhex("0001 0001 00000000 03000000 00" + size + "00000000 0000")
    body += b"".join(number.to_bytes(4, "big") for number in numbers)
    return list((len(body) | 0x40000000).to_bytes(4, "big") + body)


def test_arrays_of_several_events_are_found_behind_each_other():
    events = [[[7, 8, 9], []], [], [[0x01000005]]]
    raw = [[byte for array in event for byte in _trefarray(array)] for event in events]
    bounds = np.cumsum([0, *map(len, raw)])
    flat = np.array([byte for event in raw for byte in event], np.uint8)
    offsets, numbers = decode(flat, bounds, np.array([2, 0, 1]))
    assert offsets.tolist() == [0, 3, 3, 4]
    assert numbers.tolist() == [7, 8, 9, 0x01000005]


def test_no_events_and_no_arrays_are_nothing():
    for counts in (np.zeros(0, int), np.zeros(2, int)):
        offsets, numbers = decode(np.zeros(0, np.uint8), np.zeros(len(counts) + 1, int), counts)
        assert (offsets.tolist(), numbers.tolist()) == ([0], [])


@pytest.mark.parametrize("place", [3, 20])  # the byte count, the number of members
def test_bytes_that_are_no_references_are_refused(place):
    raw = np.array(_trefarray([1, 2]), np.uint8)
    raw[place] += 4
    with pytest.raises((ValueError, IndexError)):
        decode(raw, np.array([0, len(raw)]), np.array([1]))


def test_a_reference_means_an_object_of_its_own_event():
    event, number = np.array([0, 1, 1, 0, 1]), np.array([5, 5, 6, 6, 0])
    found = resolve(event, number, target_event=np.array([0, 1, 1]), target_number=np.array([5, 9, 5]))
    assert found.tolist() == [0, 2, -1, -1, -1]


def test_the_process_in_the_upper_bits_does_not_count():
    found = resolve(np.array([0]), np.array([0x02000005]), np.array([0, 0]), np.array([4, 0x01000005]))
    assert found.tolist() == [1]


def test_without_objects_every_reference_dangles():
    empty = np.zeros(0, int)
    assert resolve(np.array([0]), np.array([5]), empty, empty).tolist() == [-1]


def test_references_are_those_that_uproot_reads_one_by_one(shared):
    tree = uproot.open(shared / "data" / "delphes" / "events_delphes_example.root")["Delphes"]
    for name in ("JetPUPPIAK8.Constituents", "GenJet.Constituents"):
        expected = tree[name].array(library="np")
        raw = tree[name].array(uproot.AsJagged(uproot.AsDtype("u1"))).layout
        counts = np.array([len(event) for event in expected])
        offsets, numbers = decode(np.asarray(raw.content.data), np.asarray(raw.offsets.data), counts)
        arrays = [array.refs for event in expected for array in event]
        assert np.array_equal(np.diff(offsets), [len(array) for array in arrays])
        assert np.array_equal(numbers, np.concatenate(arrays))
