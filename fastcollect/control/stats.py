"""Where the time went, by kind of process."""

from dataclasses import dataclass, field, fields

from fastcollect.memory.latency import Latencies


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Counters since a collector started, or between two moments (``later - earlier``).

    seconds: wall clock. env_steps: done by env workers. taken: handed out. discarded: steps of unfinished
    blocks that died with their worker. env_worker_deaths, model_worker_deaths: replaced workers.
    stepping, waiting_actions, inferring_inline, waiting_learner: seconds, summed over env workers; waiting
    for the learner is what back-pressure cost. inferring, waiting_requests: seconds, summed over model
    workers. batches, batch_rows: what model workers inferred. waiting_blocks: seconds in ``take``.
    action_latency: from a group's observations written to its actions read.
    """

    seconds: float = 0.0
    env_steps: int = 0
    taken: int = 0
    discarded: int = 0
    env_worker_deaths: int = 0
    model_worker_deaths: int = 0
    stepping: float = 0.0
    waiting_actions: float = 0.0
    inferring_inline: float = 0.0
    waiting_learner: float = 0.0
    inferring: float = 0.0
    waiting_requests: float = 0.0
    batches: int = 0
    batch_rows: int = 0
    waiting_blocks: float = 0.0
    action_latency: Latencies = field(default_factory=Latencies)

    def __sub__(self, earlier: "Stats") -> "Stats":
        return Stats(**{f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)})

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def fps(self) -> float:
        """Environment steps handed out per second."""
        return self.taken / self.seconds if self.seconds else 0.0

    def shares(self) -> dict[str, dict[str, float]]:
        """For each kind of process, the share of its time in each state; no model workers, no entry."""
        env_worker = {name: getattr(self, name) for name in ("stepping", "waiting_actions")}
        env_worker |= {"inferring": self.inferring_inline, "waiting_learner": self.waiting_learner}
        model_worker = {"inferring": self.inferring, "waiting": self.waiting_requests}
        elsewhere = max(0.0, self.seconds - self.waiting_blocks)
        kinds = {
            "env_worker": env_worker,
            **({"model_worker": model_worker} if any(model_worker.values()) else {}),
            "learner": {"waiting_blocks": self.waiting_blocks, "elsewhere": elsewhere},
        }
        return {
            kind: {state: value / (sum(times.values()) or 1.0) for state, value in times.items()}
            for kind, times in kinds.items()
        }
