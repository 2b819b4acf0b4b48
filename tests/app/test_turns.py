"""Turns between threads."""

import threading

import pytest

from sidestep.app.turns import Cancelled, Turns


def test_long_work_that_lends_its_turn_lets_short_work_through() -> None:
    turns, order = Turns(), []
    started, asked = threading.Event(), threading.Event()

    def long() -> None:
        with turns.take():
            started.set()
            order.append("long begins")
            asked.wait()
            while "short" not in order:
                turns.lend()
            order.append("long ends")

    def short() -> None:
        started.wait()
        asked.set()
        with turns.take():
            order.append("short")

    threads = [threading.Thread(target=work) for work in (long, short)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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
        thread.join()
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


def test_stopping_ends_the_work_and_what_waits_for_it() -> None:
    turns, ended = Turns(), []
    started = threading.Event()

    def long() -> None:
        try:
            with turns.take():
                started.set()
                while True:
                    turns.lend()
        except Cancelled:
            ended.append("long")

    def short() -> None:
        try:
            with turns.take():
                while True:
                    turns.lend()
        except Cancelled:
            ended.append("short")

    threads = [threading.Thread(target=work, daemon=True) for work in (long, short)]
    threads[0].start()
    started.wait()
    threads[1].start()
    turns.stop(patience=10)
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["long", "short"]
    with pytest.raises(Cancelled), turns.take():
        pass
