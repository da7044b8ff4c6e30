"""Windows and workers: pure arithmetic, no data. A window has 10 batches in these tests."""

import itertools

import pytest

from jetfoundry.loading.batch import Position
from jetfoundry.loading.order import Deal, Order

BATCHES = 10


def steps(order, start, rank, world):
    """(pass, window, batch) of each batch of a worker and the position after it, as a feed makes them."""
    for here, following in itertools.pairwise(order.walk(start, rank, world)):
        for batch in range(here.batch, BATCHES):
            after = following if batch + 1 == BATCHES else here._replace(batch=batch + 1)
            yield (here.passes, here.window, batch), after


def run(order, start, world, count):
    """What `world` workers do in `count` steps, and where they stand then."""
    done, positions = [], []
    for rank in range(world):
        mine = list(itertools.islice(steps(order, start, rank, world), count))
        done += [step for step, _ in mine]
        positions.append(mine[-1][1])
    return done, positions


def test_pieces_of_a_pass_are_in_one_window_each_in_an_order_of_seed_and_pass():
    order, start = Order(pieces=23, window=2, seed=5), Order(23, 2, 5).start(1)
    assert order.windows(start) == 11
    orders = []
    for number in (0, 1):
        windows = [order.pieces_of(start._replace(passes=number, window=i)).tolist() for i in range(11)]
        assert [len(window) for window in windows] == [2] * 10 + [3]
        orders.append(list(itertools.chain.from_iterable(windows)))
        assert sorted(orders[-1]) == list(range(23))
    assert orders[0] != orders[1]
    assert orders[0][:2] != Order(23, 2, 6).pieces_of(start).tolist()


@pytest.mark.parametrize(("pieces", "world", "size"), [(1000, 4, 8), (40, 4, 2), (3, 4, 1), (1, 1, 1)])
def test_windows_shrink_so_that_each_worker_has_four_in_a_pass(pieces, world, size):
    assert Deal.of(Order(pieces, 8, 0).start(world).deal) == Deal(size)


@pytest.mark.parametrize("world", [1, 3, 8])
def test_workers_take_turns_through_one_line_of_windows(world):
    order = Order(pieces=20, window=4, seed=1)
    done, _ = run(order, Position(deal=Deal(4).plain()), world, 5 * BATCHES)
    assert sorted(done) == [(*divmod(n, 5), batch) for n in range(5 * world) for batch in range(BATCHES)]


@pytest.mark.parametrize("worlds", [(2, 3), (3, 2), (4, 1), (1, 4), (2, 2), (3, 5, 2)])
@pytest.mark.parametrize("count", [1, 10, 27, 94])
def test_another_number_of_workers_does_exactly_what_is_left(worlds, count):
    order = Order(pieces=14, window=2, seed=1)
    start, done = Position(deal=Deal(2).plain()), []
    for world in worlds:
        part, positions = run(order, start, world, count)
        done += part
        start = order.resume(positions)
    assert len(done) == len(set(done))
    # Nothing is left out: whatever stands before the last window that was begun is done or will be.
    rest, _ = run(order, start, 1, 40 * BATCHES)
    line = [(*divmod(n, 7), batch) for n in range(40) for batch in range(BATCHES)]
    assert set(line) <= set(done) | set(rest)
    assert not set(done) & set(rest)


def test_the_same_workers_go_on_where_they_stood():
    order, start = Order(pieces=14, window=2, seed=1), Position(deal=Deal(2).plain())
    for rank in range(3):
        whole = list(itertools.islice(steps(order, start, rank, 3), 60))
        for stop in (1, 13, 40):
            again = list(itertools.islice(steps(order, whole[stop - 1][1], rank, 3), 60 - stop))
            assert again == whole[stop:]


def test_positions_survive_as_plain_lists():
    order = Order(pieces=14, window=2, seed=1)
    start = order.resume(run(order, order.start(3), 3, 14)[1])
    again = Position(*[list(x) if isinstance(x, tuple) else x for x in start])
    assert Deal.of(again.deal) == Deal.of(start.deal)
    assert next(order.walk(again, 1, 2)) == next(order.walk(start, 1, 2))
