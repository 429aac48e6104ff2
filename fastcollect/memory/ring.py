"""Rings of blocks in shared memory, one ring for each group of an env worker.

A block holds ``block_length`` consecutive steps of one group and is self-contained: its own last
observation row bootstraps it, and the true last observations of episodes that ended inside it stand in a
table of ends. The env worker fills blocks in order, the collector copies each out once and frees it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastcollect.envs.base import EnvSpec
from fastcollect.memory.latency import BUCKETS
from fastcollect.memory.segment import FieldSpec, Layout, Segment

_BOOL, _F64, _I64, _I32 = (np.dtype(t) for t in (np.bool_, np.float64, np.int64, np.int32))

POISON = 0xA5
"""The byte that fills a block before it is written when checks are on; see ``find_poison``."""


@dataclass(frozen=True)
class RingIndex:
    """Which blocks of a ring are whose: ``freed <= written <= freed + capacity``, both counted from 0.

    Block number k lives at position k mod capacity. The worker may write block ``written`` if ``can_write``.
    """

    capacity: int
    written: int = 0
    freed: int = 0

    @property
    def can_write(self) -> bool:
        """Whether block ``written`` is the worker's."""
        return self.written - self.freed < self.capacity

    def position(self, number: int) -> int:
        """The place in the ring of the block of this number."""
        return number % self.capacity

    def wrote(self) -> "RingIndex":
        """The index once block ``written`` is complete. Raises ValueError unless ``can_write``."""
        if not self.can_write:
            raise ValueError(f"block {self.written} is not free: {self}")
        return RingIndex(self.capacity, self.written + 1, self.freed)

    def free(self, below: int) -> "RingIndex":
        """The index once every block before ``below`` is freed. Raises ValueError out of range."""
        if not self.freed <= below <= self.written:
            raise ValueError(f"cannot free the blocks below {below}: {self}")
        return RingIndex(self.capacity, self.written, below)


def group_sizes(num_envs: int, num_groups: int) -> list[int]:
    """Split ``num_envs`` into that many groups, as evenly as possible, larger ones first; none empty."""
    num_groups = min(num_groups, num_envs)
    return [num_envs // num_groups + (g < num_envs % num_groups) for g in range(num_groups)]


def block_layout(spec: EnvSpec, extras: Mapping[str, FieldSpec], length: int, envs: int) -> Layout:
    """One block of ``length`` steps of ``envs`` environments; the table of ends comes last."""
    rows = length * envs

    def per_step(shape: tuple[int, ...], dtype: np.dtype, steps: int = length) -> FieldSpec:
        return FieldSpec((steps, envs, *shape), dtype)

    return Layout(
        {
            "header": FieldSpec((4,), _I64),  # number, first step, ends, unused
            "observation": per_step(spec.observation_shape, spec.observation_dtype, length + 1),
            "action": per_step(spec.action.shape, spec.action.dtype),
            "reward": per_step((), _F64),
            "terminated": per_step((), _BOOL),
            "truncated": per_step((), _BOOL),
            "success": per_step((), _BOOL),
            **{f"extra/{name}": per_step(field.shape, field.dtype) for name, field in extras.items()},
            "end_row": FieldSpec((rows,), _I32),
            "end_return": FieldSpec((rows,), _F64),
            "end_length": FieldSpec((rows,), _I64),
            "end_success_any": FieldSpec((rows,), _BOOL),
            "end_success_last": FieldSpec((rows,), _BOOL),
            "end_success_first": FieldSpec((rows,), _I64),
            "end_observation": FieldSpec((rows, *spec.observation_shape), spec.observation_dtype),
        }
    )


@dataclass(frozen=True)
class RingConfig:
    """What fixes the memory of one env worker.

    envs: sizes of the worker's groups. length: steps in a block. capacity: blocks in a ring.
    extras: what the policy writes beside each action. noise: random numbers per action, 0 for none.
    """

    spec: EnvSpec
    envs: tuple[int, ...]
    length: int
    capacity: int
    extras: Mapping[str, FieldSpec]
    noise: int

    def layouts(self) -> list[Layout]:
        """The block's layout for each group."""
        return [block_layout(self.spec, self.extras, self.length, envs) for envs in self.envs]

    def control_layout(self) -> Layout:
        """Counters and the noise of the blocks being written."""
        groups = len(self.envs)
        return Layout(
            {
                "answered": FieldSpec((groups,), _I64),  # last request number with actions in the slots
                "rows": FieldSpec((groups,), _I64),  # environment steps done since the start
                "published": FieldSpec((groups,), _I64),  # blocks below this number are complete
                "times": FieldSpec((len(TIMES),), _F64),
                "latencies": FieldSpec((BUCKETS,), _I64),
                **{
                    f"noise/{g}": FieldSpec((self.length, envs, self.noise), np.dtype(np.float32))
                    for g, envs in enumerate(self.envs)
                },
            }
        )

    def nbytes(self) -> int:
        """Size of the segment of one env worker."""
        blocks = sum(layout.nbytes for layout in self.layouts()) * self.capacity
        return self.control_layout().nbytes + blocks


TIMES = ("stepping", "waiting_actions", "inferring", "waiting_learner")
"""Seconds that an env worker keeps account of, in this order."""


class Ring:
    """The segment of one env worker: control words, then the blocks of every group.

    blocks[g][position] maps field names to arrays; raw[g][position] is the same block as bytes.
    """

    def __init__(self, config: RingConfig, fd: int | None = None) -> None:
        self.config, self.layouts = config, config.layouts()
        self.segment = Segment(config.nbytes(), fd)
        control_layout = config.control_layout()
        control = control_layout.views(self.segment.buffer)
        self.answered, self.rows, self.times = control["answered"], control["rows"], control["times"]
        self.published, self.latencies = control["published"], control["latencies"]
        self.noise = [control[f"noise/{g}"] for g in range(len(config.envs))]
        self.raw: list[list[np.ndarray]] = []
        left = np.frombuffer(self.segment.buffer, np.uint8)[control_layout.nbytes :]
        for layout in self.layouts:
            blocks, left = np.split(left, [config.capacity * layout.nbytes])
            self.raw.append(list(blocks.reshape(config.capacity, layout.nbytes)))
        self.blocks = [
            [layout.views(block) for block in blocks]
            for layout, blocks in zip(self.layouts, self.raw, strict=True)
        ]


def find_poison(block: Mapping[str, np.ndarray]) -> str | None:
    """The first field of a complete block that holds an element nobody wrote, or None.

    An element counts as unwritten if every byte of it is POISON. Single bytes cannot tell a value from
    poison, except that no bool is 0xA5; integers narrower than four bytes (images) are left out.
    """
    for name, array in block.items():
        narrow = array.dtype != np.bool_ and array.dtype.itemsize < 4
        if name == "header" or name.startswith("end_") or narrow or not array.size:
            continue
        unsigned = array.view(f"u{array.dtype.itemsize}")
        if (unsigned == int.from_bytes(bytes([POISON]) * array.dtype.itemsize)).any():
            return name
    return None
