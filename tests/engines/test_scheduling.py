from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from paceline.engines.scheduling import Dealer

COST = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@given(COST, st.integers(1, 9), st.integers(1, 5))
def test_chunks_do_not_depend_on_the_workers_and_nobody_is_lost(costs, chunk, workers):
    clients = list(range(len(costs)))
    one, many = Dealer(costs.__getitem__, chunk, 1), Dealer(costs.__getitem__, chunk, workers)
    chunks = many.chunks(clients)
    assert one.chunks(clients) == chunks
    assert sorted(c for members in chunks.values() for c in members) == clients
    sizes = [len(members) for members in chunks.values()]
    assert max(sizes) <= chunk
    assert max(sizes) - min(sizes) <= 1
    dealt = many.deal(chunks)
    assert sorted(c for share in dealt.values() for members in share for c in members) == clients


def test_clients_of_like_size_work_together_and_the_costliest_go_first():
    costs = [5, 40, 6, 41, 7, 42]
    dealer = Dealer(costs.__getitem__, 3, 2)
    chunks = dealer.chunks(range(6))
    assert list(chunks.values()) == [[5, 3, 1], [4, 2, 0]]
    assert dealer.deal(chunks) == {0: [[5, 3, 1]], 1: [[4, 2, 0]]}


def test_loads_are_even():
    costs = [9, 8, 7, 6, 5, 4, 3, 2, 1]
    dealer = Dealer(costs.__getitem__, 1, 3)
    loads = [sum(costs[c] for (c,) in share) for share in dealer.deal(dealer.chunks(range(9))).values()]
    assert max(loads) - min(loads) <= 2


def test_a_client_keeps_its_chunk_and_worker_for_the_round():
    dealer = Dealer(lambda c: c + 1, 2, 2)
    first = dealer.deal(dealer.chunks(range(8)))
    home = {c: worker for worker, share in first.items() for chunk in share for c in chunk}
    again = dealer.deal(dealer.chunks([0, 3, 5, 9]))
    assert all(home.get(c, worker) == worker for worker, share in again.items() for chunk in share for c in chunk)
    assert {tuple(sorted(chunk)) for share in again.values() for chunk in share} == {(0,), (3,), (5,), (9,)}
    dealer.new_round()
    assert {tuple(c) for c in dealer.chunks([0, 3, 5, 9]).values()} == {(9, 5), (3, 0)}


@given(COST, st.integers(1, 9))
def test_chunks_come_out_the_same_whether_asked_at_once_or_again(costs, chunk):
    dealer = Dealer(costs.__getitem__, chunk)
    first = dealer.chunks(range(len(costs)))
    assert {n: sorted(c) for n, c in dealer.chunks(range(len(costs))).items()} == {n: sorted(c) for n, c in first.items()}
    assert all(costs[a] >= costs[b] for members in first.values() for a, b in pairwise(members)) or chunk == 1


def test_costs_asked_at_once_give_the_same_chunks():
    costs, clients = [3, 9, 1, 9, 4, 7, 2], [6, 1, 0, 3, 5]
    one = Dealer(costs.__getitem__, 2, 2)
    together = Dealer(costs.__getitem__, 2, 2, costs=lambda which: [costs[c] for c in which])
    for called in (clients, [3, 2, 4, 6]):
        assert one.chunks(called) == together.chunks(called)


@given(COST, st.integers(2, 9), st.lists(st.sampled_from([None, 0.5, 1.0]), min_size=40, max_size=40))
def test_a_chunk_has_clients_of_one_kind_and_no_more_chunks_than_these_need(costs, chunk, kinds):
    clients = list(range(len(costs)))
    chunks = Dealer(costs.__getitem__, chunk, 1, kinds.__getitem__).chunks(clients)
    assert sorted(c for members in chunks.values() for c in members) == clients
    assert all(len({kinds[c] for c in members}) == 1 and len(members) <= chunk for members in chunks.values())
    needed = sum(-(-sum(kinds[c] == kind for c in clients) // chunk) for kind in set(kinds))
    assert len(chunks) == needed
