"""The ``fastcollect`` command: one word chooses what runs, the rest of the line goes to it unchanged.

It stands here because it starts all three packages. A command's modules are imported when it is chosen and
not before, so that help is immediate and tuning never loads JAX.
"""

import difflib
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from fastcollect.support.command import run

COMMANDS = {
    "tune": "find the fastest n, N and M for an environment on this machine",
    "train": "train a dense policy, draw lottery tickets from it, transfer them",
    "report": "one HTML page and its pictures from run folders",
    "export": "a ticket as plain arrays, without its dead units",
    "bench": "measure; `fastcollect bench --help` lists what",
}
EXAMPLES = """\
  fastcollect tune --env reach-v3
  fastcollect train --stage dense --env reach-v3
  fastcollect report runs/reach-v3/*
  fastcollect export runs/reach-v3/ticket-seed0-...
  fastcollect bench fps --env reach-v3"""

BENCHES = {
    "fps": "environment steps per second, of the engine and its peers",
    "compare": "every method on every environment",
    "scaling": "speed along N, n, the policy's width, M and a learner",
    "tuning": "the tuner's pick against a sweep of its whole grid",
    "tokens": "pipes and queues as carriers of tokens",
    "learner": "updates per second, ours and others'",
    "pipeline": "wall clock of a whole study",
    "soak": "whether memory stays flat",
    "cartridge": "make the small Game Boy cartridge",
}
BENCH_EXAMPLES = """\
  fastcollect bench fps --env HalfCheetah-v5 --seconds 5
  fastcollect bench scaling --env reach-v3"""


def main(line: Sequence[str] | None = None) -> NoReturn:
    """Run the command that ``line`` names, by default the process's own arguments, and exit with its code.

    Without a command, or with one that does not exist, the code is 2, as for any other usage error.
    """
    line = sys.argv[1:] if line is None else line
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # as ``python -m`` does, for environments in modules of the user's
    name, rest = _choose("fastcollect", COMMANDS, EXAMPLES, line)
    if name == "bench":
        name, rest = _choose("fastcollect bench", BENCHES, BENCH_EXAMPLES, rest)
        _run_module(f"bench.{name}", rest)
    elif name == "train":
        from trainers.command import main as train

        run(lambda: train(rest))
    elif name == "tune":
        import tyro

        from fastcollect.tuning.command import TuneArguments, tune

        sys.argv = ["tune_throughput.py", *rest]  # what a run folder says that it was made with
        arguments = tyro.cli(TuneArguments, prog="fastcollect tune", description=COMMANDS["tune"])
        run(lambda: tune(arguments))
    else:
        _run_module(f"trainers.{name}", rest)
    sys.exit(0)


def _choose(
    program: str, commands: Mapping[str, str], examples: str, line: Sequence[str]
) -> tuple[str, Sequence[str]]:
    """The command's name and what follows it; exits after help and after a name that does not exist."""
    if not line or line[0] in ("-h", "--help"):
        width = max(map(len, commands))
        names = "\n".join(f"  {name:{width}}  {what}" for name, what in commands.items())
        print(
            f"usage: {program} COMMAND ...\n\n{names}\n\nfor example:\n{examples}\n\n"
            f"{program} COMMAND --help explains one.",
            file=sys.stdout if line else sys.stderr,
        )
        sys.exit(0 if line else 2)
    name, *rest = line
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1, cutoff=0)[0]
        print(f"error: {program} has no command {name!r}; did you mean {near!r}?", file=sys.stderr)
        print(f"there are: {', '.join(commands)}", file=sys.stderr)
        sys.exit(2)
    return name, rest


def _run_module(module: str, line: Sequence[str]) -> None:
    """As ``python -m module line``."""
    sys.argv = [module, *line]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
