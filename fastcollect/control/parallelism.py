"""How a collection is spread over processes: n, N and M in one value."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, order=True)
class Parallelism:
    """``n`` environments in each of ``N`` env workers, ``M`` model workers; CollectorConfig checks them."""

    n: int
    N: int
    M: int

    def __str__(self) -> str:
        return f"n={self.n} N={self.N} M={self.M}"

    @property
    def total(self) -> int:
        """How many environments there are: n * N."""
        return self.n * self.N

    @property
    def workers(self) -> int:
        """How many worker processes there are: N + M."""
        return self.N + self.M

    def as_dict(self) -> dict[str, int]:
        """The JSON form: {"n": ..., "N": ..., "M": ...}."""
        return asdict(self)
