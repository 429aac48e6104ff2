"""Crafter against stock copies that are stepped on their own, and through the engine."""

from collections import defaultdict

import crafter
import numpy as np
import pytest
from crafter import engine, objects, worldgen
from opensimplex import OpenSimplex
from support.collectors import one_round, reproducible

from fastcollect import cnn_policy
from fastcollect.control.collector import Collector
from fastcollect.control.serial import SerialCollector
from fastcollect.envs import crafter_world
from fastcollect.envs.base import BatchedEnv, EnvStepError, StateUnsupportedError, StepBuffers
from fastcollect.envs.crafter_world import noise, note_places
from fastcollect.envs.registry import EnvConfig, make_env

REWARD = "CrafterReward-v1"
TINY = {"area": (16, 12)}  # a small world is made quickly
ACTIONS = 17
SLEEP = 6


class Chunk(list):
    """What stock keeps in a set, whose order is that of addresses."""

    add = list.append


class Stock(crafter.Env):
    """Stock Crafter, whose creatures are removed in the order in which they came."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        plain = self._world.reset

        def reset(seed=None):
            plain(seed)
            self._world._chunks = defaultdict(Chunk)

        self._world.reset = reset


def start(seeds, env_id=REWARD, **kwargs):
    env = make_env(EnvConfig(id=env_id, kwargs=kwargs), np.asarray(seeds, np.int64))
    assert isinstance(env, BatchedEnv)
    out = StepBuffers.allocate(env.spec, len(seeds))
    env.reset(out.observation)
    return env, out


def draw_actions(steps, n, seed=0):
    """Random ones, with times of sleep, in which the picture and what zombies do are different."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, ACTIONS, (steps, n))
    actions[(np.arange(steps) // 60 % 3 == 1)[:, None] & (rng.random((steps, n)) < 0.8)] = SLEEP
    return actions


def follow(seeds, actions, **kwargs):
    """Step ours and stock copies side by side; the ends as (died, too long), and what was seen of stock."""
    env, out = start(seeds, **kwargs)
    stock = [Stock(seed=seed, **kwargs) for seed in seeds]
    assert all(out.observation[i].tobytes() == game.reset().tobytes() for i, game in enumerate(stock))
    ends, seen = [], {"night": 0, "asleep": 0, "edge": 0, "rewards": set(), "objects": set()}
    for action in actions:
        env.step(action, out)
        for i, game in enumerate(stock):
            observation, reward, done, _ = game.step(action[i])
            assert observation.dtype == np.uint8
            assert (out.reward[i], out.terminated[i] or out.truncated[i]) == (reward, done)
            seen["night"] += game._world.daylight < 0.5
            seen["asleep"] += game._player.sleeping
            seen["edge"] += min(*game._player.pos, *(game._world.area - game._player.pos)) < 4
            seen["rewards"].add(round(reward, 1))
            seen["objects"] |= {type(thing) for thing in game._world.objects}
            if done:
                died, late = game._player.health <= 0, game._step >= game._length
                assert (out.terminated[i], out.truncated[i]) == (died, late)
                assert out.final_observation[i].tobytes() == observation.tobytes()
                ends.append((died, late))
                observation = game.reset()
            assert out.observation[i].tobytes() == observation.tobytes()
    env.close()
    return ends, seen


@pytest.mark.slow
def test_equals_stock_over_whole_episodes_that_end_by_death():
    ends, seen = follow([2], draw_actions(330, 1), area=(40, 40))
    assert ends.count((True, False)) == len(ends) >= 1
    assert min(seen["night"], seen["asleep"]) > 50
    assert min(seen["rewards"]) < 0 < max(seen["rewards"])
    assert {objects.Player, objects.Cow, objects.Zombie} <= seen["objects"]


def test_equals_stock_where_the_length_ends_an_episode():
    ends, _ = follow([11, 2**62 + 17], draw_actions(62, 2, seed=1), length=15, **TINY)
    assert ends.count((False, True)) >= 7


@pytest.mark.parametrize(
    "kwargs",
    [{"view": (7, 6), "size": (80, 51), **TINY}, {"view": 12, "size": 24, "area": (9, 30)}, TINY],
    ids=["wide", "small", "tiny world"],
)
def test_equals_stock_whatever_is_in_sight(kwargs):
    _, seen = follow([21, 22], draw_actions(280, 2, seed=2), **kwargs)
    assert min(seen["night"], seen["asleep"], seen["edge"]) > 20


def test_a_player_who_dies_at_the_last_step_is_both():
    env, out = start([5], **TINY)
    actions, steps = draw_actions(2000, 1, seed=3), 0
    for action in actions:
        env.step(action, out)
        steps += 1
        if out.terminated[0]:
            break
    again, out = start([5], length=steps, **TINY)
    for action in actions[:steps]:
        assert not out.terminated[0]
        again.step(action, out)
    assert (out.terminated[0], out.truncated[0]) == (True, True)


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 2])
def test_the_noise_of_a_world_is_the_librarys(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-40, 40, (2500, 3))
    points[:500] = points[:500].round()  # where cells and regions meet
    points[500:1000] = (points[500:1000] * 6).round() / 6
    points[1000:1500] = rng.integers(0, 64, (500, 3)) / [[15, 15, 1]]
    points[1500:1700] *= 100
    ours = noise(OpenSimplex(seed), note_places(*points.T))
    stock = OpenSimplex(seed)
    assert ours.tobytes() == np.array([stock.noise3(*point) for point in points.tolist()]).tobytes()


def test_exponentials_of_an_array_are_those_of_its_numbers():
    numbers = np.random.default_rng(0).uniform(-50, 8, 4099)
    assert np.exp(numbers).tobytes() == np.array([np.exp(number) for number in numbers]).tobytes()


@pytest.mark.parametrize(("strip", "seed"), [(64 * 64, 3), (333, 4)], ids=["whole", "strips"])
def test_worlds_are_stocks(strip, seed, monkeypatch):
    monkeypatch.setattr(crafter_world, "_STRIP", strip)
    kinds = set()
    for area in [(40, 40), (9, 30), (16, 12), (1, 1), (1, 7), (5, 1)]:
        made = []
        for generate in (crafter_world.generate_world, worldgen.generate_world):
            world = engine.World(area, crafter.constants.materials, (12, 12))
            world.reset(seed)
            player = objects.Player(world, (area[0] // 2, area[1] // 2))
            world.add(player)
            generate(world, player)
            things = [
                (type(thing), thing.pos.tolist(), thing.pos.dtype, thing.inventory) for thing in world.objects
            ]
            kinds |= {world._mat_names[material] for material in world._mat_map.flat}
            kinds |= {type(thing) for thing in world.objects}
            _, key, *rest = world.random.get_state()
            made.append((world._mat_map.tobytes(), world._obj_map.tobytes(), things, key.tobytes(), rest))
        assert made[0] == made[1]
    ground = set(crafter.constants.materials) - {"table", "furnace", "plant"}
    assert kinds == ground | {objects.Player, objects.Cow, objects.Zombie, objects.Skeleton}


def test_a_row_depends_on_its_seed_and_actions_alone():
    actions = draw_actions(200, 3, seed=4)
    env, out = start([7, 8, 9], **TINY)
    alone, single = start([8], **TINY)
    for action in actions:
        env.step(action, out)
        alone.step(action[1:2], single)
        assert single.observation[0].tobytes() == out.observation[1].tobytes()
        assert single.reward[0] == out.reward[1]
    assert out.observation[0].tobytes() != out.observation[2].tobytes()


def test_without_rewards_the_game_is_the_same():
    actions = draw_actions(120, 1, seed=5)
    env, out = start([4], **TINY)
    other, silent = start([4], "CrafterNoReward-v1", **TINY)
    total = 0.0
    for action in actions:
        env.step(action, out)
        other.step(action, silent)
        assert silent.observation.tobytes() == out.observation.tobytes()
        assert silent.reward[0] == 0
        total += abs(out.reward[0])
    assert total > 0


@pytest.mark.parametrize("steps", [0, 7, 140])
def test_a_restored_game_goes_on_bit_for_bit(steps, tmp_path):
    actions = draw_actions(steps + 120, 2, seed=6)
    env, out = start([31, 32], length=50, **TINY)
    for action in actions[:steps]:
        env.step(action, out)
    np.savez(tmp_path / "state.npz", **env.get_state())
    other, restored = start([1, 2], length=50, **TINY)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        other.set_state(state)
    ends = 0
    for action in actions[steps:]:
        env.step(action, out)
        other.step(action, restored)
        for name in ("observation", "reward", "terminated", "truncated"):
            assert getattr(out, name).tobytes() == getattr(restored, name).tobytes()
        ends += (out.terminated | out.truncated).sum()
    assert ends >= 4


def test_a_state_of_other_worlds_is_refused():
    env, out = start([31], **TINY)
    env.step(np.array([1]), out)
    other, _ = start([31], area=(16, 16))
    with pytest.raises(StateUnsupportedError, match="another observation"):
        other.set_state(env.get_state())


def test_specs():
    spec = start([0], **TINY)[0].spec
    assert (spec.observation_shape, spec.observation_dtype) == ((64, 64, 3), np.uint8)
    assert (spec.action.num_actions, spec.max_episode_steps, spec.has_success) == (ACTIONS, 10_000, False)
    assert start([0], size=(80, 51), view=(7, 6), **TINY)[0].spec.observation_shape == (51, 80, 3)
    assert start([0], length=None, **TINY)[0].spec.max_episode_steps is None


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"view": (9, 2)}, r"view is \(9, 2\).*allowed: more than 2 rows"),
        ({"size": (64, 17)}, r"size \(64, 17\).*two pixels for every field"),
        ({"area": (0, 64)}, r"area is \(0, 64\); allowed: a positive integer"),
        ({"size": "big"}, "size is 'big'; allowed"),
        ({"length": 0}, "length is 0; allowed: at least 1 step, or None"),
    ],
)
def test_numbers_that_cannot_work_are_refused_with_what_is_allowed(kwargs, text):
    with pytest.raises(ValueError, match=text):
        start([0], **kwargs)


def test_an_action_that_does_not_exist_is_refused():
    env, out = start([0], **TINY)
    for wrong in (-1, ACTIONS):
        with pytest.raises(EnvStepError, match=rf"action is {wrong}; allowed: 0 to 16"):
            env.step(np.array([wrong]), out)


@pytest.mark.parametrize(("num_envs", "workers", "models"), [(2, 2, 0), (2, 2, 1)])
def test_images_reach_the_learner_as_the_serial_collectors(num_envs, workers, models):
    env = EnvConfig(id=REWARD, kwargs={"length": 10, **TINY})
    policy = cnn_policy(extras=("log_prob",))

    def blocks(kind, *shape):
        with kind(reproducible(env, policy, *shape, block_length=8)) as collector:
            taken = [block for _ in range(3) for block in one_round(collector)]
        return {(block.number, *block.env_index.tolist()): block for block in taken}

    expected = blocks(SerialCollector, num_envs * workers, 1, 0)
    got = blocks(Collector, num_envs, workers, models)
    assert got.keys() == expected.keys()
    ends = 0
    for key, block in got.items():
        other = expected[key]
        assert block.observation.dtype == np.uint8
        for name in ("observation", "next_observation", "action", "reward", "terminated", "truncated"):
            assert np.array_equal(getattr(block, name), getattr(other, name))
        assert np.array_equal(block.extras["log_prob"], other.extras["log_prob"])
        assert len(np.unique(block.action)) > 3
        ends += len(block.episodes)
    assert ends >= 8
