import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.coded_env import SPEC

from fastcollect.memory.ring import (
    POISON,
    Ring,
    RingConfig,
    RingIndex,
    block_layout,
    find_poison,
    group_sizes,
)
from fastcollect.memory.segment import ALIGNMENT, FieldSpec


@given(capacity=st.integers(1, 7), moves=st.lists(st.integers(0, 5), max_size=60))
def test_ring_index_never_overwrites_and_never_skips(capacity, moves):
    """Against a model: a dictionary of what each position holds."""
    index, held, next_free = RingIndex(capacity), {}, 0
    for move in moves:
        if move < 3:
            number, position = index.written, index.position(index.written)
            if position in held:
                assert not index.can_write
                with pytest.raises(ValueError, match="not free"):
                    index.wrote()
                continue
            assert index.can_write
            held[position] = number
            index = index.wrote()
        else:
            below = min(next_free + move - 2, index.written)
            for number in range(next_free, below):
                assert held.pop(index.position(number)) == number
            next_free = below
            index = index.free(below)
        assert index.written - index.freed == len(held) <= capacity


@given(capacity=st.integers(1, 5), written=st.integers(0, 9), below=st.integers(-3, 20))
def test_only_written_blocks_can_be_freed_once(capacity, written, below):
    index = RingIndex(capacity, written, max(0, written - capacity))
    if index.freed <= below <= index.written:
        assert index.free(below).freed == below
    else:
        with pytest.raises(ValueError, match="cannot free"):
            index.free(below)


@given(num_envs=st.integers(1, 200), num_groups=st.integers(1, 5))
def test_group_sizes_cover_every_environment_evenly(num_envs, num_groups):
    sizes = group_sizes(num_envs, num_groups)
    assert sum(sizes) == num_envs
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == min(num_groups, num_envs)


@given(length=st.integers(1, 9), envs=st.integers(1, 9), capacity=st.integers(1, 4), noise=st.integers(0, 3))
def test_no_two_arrays_of_a_ring_share_a_byte(length, envs, capacity, noise):
    config = RingConfig(
        spec=SPEC,
        envs=(envs, envs + 1),
        length=length,
        capacity=capacity,
        extras={"value": FieldSpec((2,), np.dtype(np.float32))},
        noise=noise,
    )
    ring = Ring(config)
    arrays = [ring.answered, ring.rows, ring.times, *ring.noise]
    for blocks in ring.blocks:
        for block in blocks:
            arrays += block.values()
    for value, array in enumerate(arrays, start=1):
        array.view(np.uint8)[...] = value % 251
    for value, array in enumerate(arrays, start=1):
        assert (array.view(np.uint8) == value % 251).all()
        assert array.ctypes.data % ALIGNMENT == 0 or not array.size
    ring.segment.close()


def test_raw_bytes_and_views_of_a_block_are_the_same_memory():
    config = RingConfig(spec=SPEC, envs=(3,), length=4, capacity=2, extras={}, noise=0)
    ring = Ring(config)
    ring.blocks[0][1]["reward"][:] = 7.5
    layout = ring.layouts[0]
    offset = layout.offsets["reward"]
    raw = ring.raw[0][1][offset : offset + 4 * 3 * 8]
    assert (raw.view(np.float64) == 7.5).all()
    assert not ring.raw[0][0].any()
    ring.segment.close()


def test_poison_is_found_in_each_field_until_it_is_written():
    layout = block_layout(SPEC, {"seen": FieldSpec((3,), np.dtype(np.int64))}, 4, 2)
    block = layout.views(np.full(layout.nbytes, POISON, np.uint8))
    fields = [name for name in block if name != "header" and not name.startswith("end_")]
    for name in fields:
        assert find_poison(block) == name
        block[name][...] = 1
        block[name][-1, -1] = (
            np.full((), int.from_bytes(bytes([POISON]) * 8, "little"), np.uint64).view(np.int64)
            if block[name].dtype == np.int64
            else block[name][-1, -1]
        )
        if block[name].dtype == np.int64:
            assert find_poison(block) == name
            block[name][...] = 1
    assert find_poison(block) is None
