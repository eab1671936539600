"""Whose turn it is depends on what is in the partitions, not on when it arrives."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from trainer.turns import Turns


@dataclass(frozen=True)
class Item:
    partition: int
    number: int


def items(partition: int, count: int) -> list[Item]:
    return [Item(partition, number) for number in range(count)]


def test_partitions_take_turns():
    turns: Turns[Item] = Turns([0, 1, 2])
    turns.add(items(0, 2) + items(1, 1) + items(2, 2))
    taken = [turn.item for _ in range(5) if (turn := turns.next(passed_over={0, 1, 2}))]
    assert taken == [Item(0, 0), Item(1, 0), Item(2, 0), Item(0, 1), Item(2, 1)]


def test_a_partition_that_may_hold_more_is_waited_for():
    turns: Turns[Item] = Turns([0, 1])
    turns.add(items(1, 1))
    assert turns.next(passed_over=frozenset()) is None
    assert turns.waiting_for(passed_over=frozenset()) == 0
    turn = turns.next(passed_over={0})
    assert turn is not None
    assert (turn.item, turn.next_partition) == (Item(1, 0), 0)


def test_resuming_at_the_next_partition_continues_the_order():
    whole: Turns[Item] = Turns([0, 2, 4])
    stock = items(0, 4) + items(2, 2) + items(4, 3)
    whole.add(stock)
    everyone = {0, 2, 4}
    order = [turn for _ in stock if (turn := whole.next(passed_over=everyone))]
    for cut in range(len(order)):
        done = {turn.item for turn in order[: cut + 1]}
        resumed: Turns[Item] = Turns([0, 2, 4], first=order[cut].next_partition)
        resumed.add([item for item in stock if item not in done])
        rest = [turn for _ in stock if (turn := resumed.next(passed_over=everyone))]
        assert rest == order[cut + 1 :]


@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    arrivals=st.lists(st.integers(0, 3), max_size=60),
)
def test_the_order_of_a_finished_topic_does_not_depend_on_arrival(counts: list[int], arrivals: list[int]):
    at_once: Turns[Item] = Turns(range(len(counts)))
    for partition, count in enumerate(counts):
        at_once.add(items(partition, count))
    everyone = set(range(len(counts)))
    expected = [turn for _ in range(sum(counts)) if (turn := at_once.next(passed_over=everyone))]

    trickling: Turns[Item] = Turns(range(len(counts)))
    waiting = {partition: items(partition, count) for partition, count in enumerate(counts)}
    taken = []
    for partition in [
        *(a % len(counts) for a in arrivals),
        *(p for p, count in enumerate(counts) for _ in range(count)),
    ]:
        if waiting[partition]:
            trickling.add([waiting[partition].pop(0)])
        ended = {p for p, rest in waiting.items() if not rest}
        while turn := trickling.next(passed_over=ended):
            taken.append(turn)
    assert taken == expected
