"""Both carriers of tokens: order, capacity, many writers, and what is refused."""

import contextlib
import itertools
import os
import sys
import time
from collections import defaultdict, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.token_office import COLLECTOR, Office, exit_code, process, read_until

from fastcollect.control.config import CollectorConfig
from fastcollect.envs.registry import EnvConfig
from fastcollect.memory.tokens import CAPACITY, Kind, exchange
from fastcollect.support.errors import ConfigError

CHANNELS = ("pipes", "faster-fifo")
both = pytest.mark.parametrize("channel", CHANNELS)


WORKERS, MODELS = [("worker", w) for w in range(2)], [("model", m) for m in range(2)]
ROUTES = [
    *itertools.product([COLLECTOR], WORKERS),
    *itertools.product(WORKERS, [COLLECTOR, *MODELS]),
    *itertools.product(MODELS, [COLLECTOR, *WORKERS]),
]
ACTIONS = st.lists(st.one_of(st.sampled_from(ROUTES), st.sampled_from([COLLECTOR, *WORKERS, *MODELS])))


@both
@given(actions=ACTIONS)
@settings(max_examples=60, deadline=None)
def test_every_reader_gets_what_each_sender_sent_once_and_in_order(channel, actions):
    with Office(channel, workers=2, models=2) as office:
        parties = [COLLECTOR, *WORKERS, *MODELS]
        expected = defaultdict(lambda: defaultdict(deque))  # receiver -> sender -> tokens

        def check(receiver):
            for token in office.read(receiver):
                assert token == expected[receiver][parties[token[1]]].popleft()
            assert not any(expected[receiver].values())

        for number, action in enumerate(actions):
            if isinstance(action[1], tuple):
                sender, receiver = action
                token = (Kind.REQUEST, parties.index(sender), number % 3, number)
                office.send(sender, receiver, *token)
                expected[receiver][sender].append(token)
            else:
                check(action)
        for party in parties:
            check(party)
            assert office.read(party) == []


@both
def test_fields_keep_their_extremes(channel):
    with Office(channel) as office:
        for token in (
            (Kind.SAVED, -(2**31), 2**15 - 1, 2**63 - 1),
            (Kind.READY, 2**31 - 1, -(2**15), -(2**63)),
        ):
            office.send(("worker", 0), COLLECTOR, *token)
            assert office.read(COLLECTOR) == [token]


@both
def test_an_inbox_wakes_for_a_token_and_for_whatever_else_it_waits_for(channel):
    kind = exchange(channel)
    held = kind(0)
    read, write = os.pipe()
    inbox, line = held.inbox(read), held.connect()
    assert inbox.wait(0.0) == set()
    os.write(write, b"!")
    assert read in inbox.wait(None)

    def work():
        worker = kind.env_worker(line.worker_fds())
        worker.inbox.wait(None)
        (token,) = worker.inbox.read()
        worker.reports.send(Kind.READY, token[1] + 1)

    os.read(read, 1)
    with process(work) as pid:
        line.send(Kind.FREED, 7)
        while not (tokens := list(inbox.read())):
            assert read not in inbox.wait(None)
        assert tokens == [(Kind.READY, 8, 0, 0)]
        assert exit_code(pid) == 0


@both
def test_a_channel_holds_its_capacity_and_a_worker_that_sends_more_waits(channel):
    with Office(channel) as office:
        send = office.workers[0].reports.send
        for number in range(CAPACITY):
            send(Kind.PUBLISHED, 0, 0, number)

        def more():
            for number in range(CAPACITY, 2 * CAPACITY + 3):
                send(Kind.PUBLISHED, 0, 0, number)

        with process(more) as pid:
            time.sleep(0.2)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
            tokens = read_until(office.inbox, 2 * CAPACITY + 3)
            assert [token[3] for token in tokens] == list(range(2 * CAPACITY + 3))
            assert exit_code(pid) == 0


@both
def test_many_writers_at_once_lose_nothing(channel):
    count = 3000
    with Office(channel, workers=4) as office:

        def work(w):
            for number in range(count):
                office.send(("worker", w), COLLECTOR, Kind.PUBLISHED, w, 0, number)
                office.send(("worker", w), ("model", 0), Kind.REQUEST, w, 0, number)

        with contextlib.ExitStack() as stack:
            pids = [stack.enter_context(process(lambda w=w: work(w))) for w in range(4)]
            reports, requests = [], []
            while len(reports) + len(requests) < 8 * count:
                reports += office.inbox.read()
                requests += office.models[0][0].read()
            for found in (reports, requests):
                for w in range(4):
                    assert [token[3] for token in found if token[1] == w] == list(range(count))
            assert [exit_code(pid) for pid in pids] == [0] * 4


def test_a_line_that_is_closed_is_read_no_more_and_leaves_no_descriptor():
    exchange("faster-fifo")(0).connect()  # the library keeps one descriptor of its own
    for channel in CHANNELS:
        before = len(os.listdir("/proc/self/fd"))
        held = exchange(channel)(2)
        inbox, line = held.inbox(), held.connect()
        line.close()
        assert list(inbox.read()) == []
        held.close()
        del held, inbox, line
        assert len(os.listdir("/proc/self/fd")) == before


def collector(ring_blocks=1, **changes):
    env = EnvConfig(id="CartPole-v1")
    return CollectorConfig(env=env, num_envs=1000, group_size=1, ring_blocks=ring_blocks, **changes)


def test_what_would_not_fit_is_refused_where_the_channel_is_chosen():
    with pytest.raises(ConfigError, match=r"num_env_workers x groups .* is 6000; allowed with pipes: up to"):
        collector(num_env_workers=2)
    collector(num_env_workers=2, tokens="faster-fifo")
    with pytest.raises(ConfigError, match=r"^groups x .* is 5000; allowed with faster-fifo: up to 4096"):
        collector(num_env_workers=1, tokens="faster-fifo", ring_blocks=3)


def test_an_unknown_channel_and_one_that_is_not_installed_are_named(monkeypatch):
    with pytest.raises(ConfigError, match=r"tokens is 'smoke'; allowed: 'pipes', 'faster-fifo'"):
        collector(tokens="smoke")
    monkeypatch.setitem(sys.modules, "faster_fifo", None)
    monkeypatch.delitem(sys.modules, "fastcollect.memory.tokens.fifo", raising=False)
    with pytest.raises(ConfigError, match=r"tokens is 'faster-fifo', which cannot be imported here"):
        collector(tokens="faster-fifo")
