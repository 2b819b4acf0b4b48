"""Turns between threads."""

import threading

from sidestep.app.turns import Turns


def test_long_work_that_lends_its_turn_lets_short_work_through() -> None:
    turns, order = Turns(), []
    started, asked = threading.Event(), threading.Event()

    def long() -> None:
        with turns.take():
            started.set()
            order.append("long begins")
            asked.wait(5)
            while "short" not in order:
                turns.lend()
            order.append("long ends")

    def short() -> None:
        started.wait(5)
        asked.set()
        with turns.take():
            order.append("short")

    threads = [threading.Thread(target=work) for work in (long, short)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert order == ["long begins", "short", "long ends"]


def test_one_thread_at_a_time_has_the_turn() -> None:
    turns, inside, most = Turns(), [], []

    def work() -> None:
        for _ in range(50):
            with turns.take():
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 200
    assert max(most) == 1


def test_a_turn_is_given_back_after_an_error() -> None:
    turns = Turns()
    try:
        with turns.take():
            raise ValueError
    except ValueError:
        pass
    with turns.take():
        turns.lend()
