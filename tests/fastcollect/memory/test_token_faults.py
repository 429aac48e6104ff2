"""Peers that are stopped or killed while they send or read tokens."""

import itertools
import os
import random
import signal
import time

import pytest
from support.token_office import COLLECTOR, Office, exit_code, process, read_until

from fastcollect.memory.tokens import CAPACITY, Kind

both = pytest.mark.parametrize("channel", ("pipes", "faster-fifo"))


@both
def test_a_writer_killed_anywhere_hangs_nobody_and_its_successor_is_heard(channel):
    moments = random.Random(0)
    for _ in range(25):
        with Office(channel) as office:
            inbox = office.workers[0].inbox

            def hammer(office=office):
                for number in itertools.count():
                    office.send(("model", 0), ("worker", 0), Kind.ANSWER, 5, 0, number)

            with process(hammer) as pid:
                tokens = read_until(inbox, 1)
                until = time.monotonic() + moments.uniform(0, 0.01)
                while time.monotonic() < until:
                    tokens += inbox.read()
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            tokens += inbox.read()
            assert tokens == [(Kind.ANSWER, 5, 0, number) for number in range(len(tokens))]
            office.models[0] = office.model(0)
            office.send(("model", 0), ("worker", 0), Kind.ANSWER, 6)
            assert office.read(("worker", 0)) == [(Kind.ANSWER, 6, 0, 0)]


@both
def test_a_reader_killed_anywhere_hangs_nobody_and_its_successor_hears(channel):
    moments = random.Random(1)
    for _ in range(25):
        with Office(channel) as office:

            def listen(office=office):
                while True:
                    office.models[0][0].wait(None)
                    list(office.models[0][0].read())

            with process(listen) as pid:
                until = time.monotonic() + 0.005 + moments.uniform(0, 0.01)
                while time.monotonic() < until:
                    office.send(("worker", 0), ("model", 0), Kind.REQUEST, 5)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            office.models[0] = office.model(0)
            office.send(("worker", 0), ("model", 0), Kind.REQUEST, 6)
            # What waited is there too, unless the queue had to be emptied.
            assert office.read(("model", 0))[-1] == (Kind.REQUEST, 6, 0, 0)


def hold(queue, then):
    """Be inside a queue, with its memory in a state that no reader must see."""

    def inside():
        queue.acquire(wait=True)
        saved = queue._header.copy()
        queue._header[:] = 0xFF
        os.kill(os.getpid(), then)
        queue._header[:] = saved
        queue.release()

    return process(inside)


@pytest.mark.parametrize("sends_first", [False, True])
def test_a_queue_whose_owner_died_inside_is_as_good_as_new_for_whoever_comes(sends_first):
    with Office("faster-fifo") as office:
        office.send(("worker", 0), COLLECTOR, Kind.PUBLISHED, 0)
        with hold(office.lines[0]._reports, signal.SIGKILL) as pid:
            assert exit_code(pid) == -signal.SIGKILL
        if sends_first:
            office.send(("worker", 0), COLLECTOR, Kind.SAVED, 0)
            assert office.read(COLLECTOR) == [(Kind.SAVED, 0, 0, 0)]
        assert office.read(COLLECTOR) == []
        for number in range(CAPACITY):  # all of it can be used, again and again
            office.send(("worker", 0), COLLECTOR, Kind.PUBLISHED, 0, 0, number)
        assert [token[3] for token in office.read(COLLECTOR)] == list(range(CAPACITY))


def test_the_collector_waits_for_no_worker_that_is_stopped_inside_a_queue():
    with Office("faster-fifo") as office:
        office.send(("worker", 0), COLLECTOR, Kind.PUBLISHED, 0)
        line = office.lines[0]
        with hold(line._reports, signal.SIGSTOP) as writer, hold(line._queue, signal.SIGSTOP) as reader:
            for pid in (writer, reader):
                os.waitpid(pid, os.WUNTRACED)
            assert office.read(COLLECTOR) == []
            for number in range(3):
                line.send(Kind.FREED, 0, 0, number)
            assert office.read(("worker", 0)) == []
            for pid in (writer, reader):
                os.kill(pid, signal.SIGCONT)
                assert exit_code(pid) == 0
        office.inbox.wait(None)  # it does not sleep while tokens of its own wait
        assert office.read(COLLECTOR) == [(Kind.PUBLISHED, 0, 0, 0)]
        assert office.read(("worker", 0)) == [(Kind.FREED, 0, 0, number) for number in range(3)]


def test_the_collector_waits_for_no_worker_whose_queue_is_full():
    with Office("faster-fifo") as office:
        for number in range(CAPACITY + 3):
            office.send(COLLECTOR, ("worker", 0), Kind.FREED, 0, 0, number)
        found = office.read(("worker", 0))
        office.inbox.read()
        found += office.read(("worker", 0))
        assert [token[3] for token in found] == list(range(CAPACITY + 3))
