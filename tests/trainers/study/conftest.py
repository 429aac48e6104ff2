"""A dense run, a ticket drawn from it and the ticket's transfer, for all tests that only look at them."""

import pytest
from support.stages import Starts, run_ticket, run_transfer
from support.training import launcher, one_launcher

from trainers.run import training

__all__ = ["one_launcher"]


@pytest.fixture(scope="session")
def dense(uninterrupted):
    """A reproducible dense run."""
    return uninterrupted[0]


@pytest.fixture(scope="session")
def ticket(dense):
    """(Folder of a ticket of two rounds with controls of the last, starts of the runs inside)."""
    path = dense.parent / "ticket"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "new_launcher", lambda config: launcher())
        starts = Starts(patch)
        run_ticket(path, dense, controls=(2,))
    return path, starts


@pytest.fixture(scope="session")
def transfer(dense, ticket):
    """(Folder of a transfer to another environment with another seed, starts of the runs inside)."""
    path = dense.parent / "transfer"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "new_launcher", lambda config: launcher())
        starts = Starts(patch)
        run_transfer(path, ticket[0], dense)
    return path, starts
