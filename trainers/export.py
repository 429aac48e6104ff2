"""A trained actor as a small file: normaliser folded in, units without influence removed, checked, timed.

Where a run evaluated an average of its actor, that is what is exported.

python -m trainers.export RUN [--out FILE]

The file needs NumPy alone:

    actor = np.load(FILE)
    x = observation[:, actor["inputs"]]
    for i in range(depth - 1):
        x = np.maximum(x @ actor[f"kernel_{i}"] + actor[f"bias_{i}"], 0)
    head = x @ actor[f"kernel_{depth - 1}"] + actor[f"bias_{depth - 1}"]
    meta = json.loads(actor["meta.json"])
    action = np.tanh(head[:, : meta["actions"]])  # in [-1, 1], to be stretched to the environment's box
"""

import fastcollect.support.project_environment  # noqa: F401  (first: it may change the interpreter)

# isort: split
import json
import math
import timeit
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from engine.sparse import flops
from engine.sparse.compact import CompactMLP, compact, forward
from fastcollect.support.command import check_writable, run
from fastcollect.support.errors import ConfigError
from fastcollect.support.files import write_file
from fastcollect.support.machine import cpu_model
from trainers.run.policy import load_policy
from trainers.store import artifacts
from trainers.store.manifest import read_summary
from trainers.store.reader import SavedRun, find_source, identify, load

BATCHES = (1, 32, 256)
TOLERANCE = 1e-6
_ROWS = 4096
_ROUNDS = 21
_SLICE_SECONDS = 1e-3


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """What ``python -m trainers.export`` takes."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Finished run folder: dense, a ticket (its last round is taken), or any run inside a stage."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to write; default: RUN/actor.npz."""


class DifferentOutputsError(RuntimeError):
    """The small network does not do what the trained one does; nothing was written."""


def export(arguments: ExportArguments) -> None:
    """Write the file and print what became smaller. Raises ConfigError before anything is written."""
    out = arguments.out or arguments.run / "actor.npz"
    chosen = exportable(arguments.run)
    check_writable(out)
    observations = check_observations(chosen)
    actor = folded_actor(chosen)
    small = compact(chosen.masks["actor"], actor)
    meta = {
        **_facts(chosen, actor, small),
        "checked_observations": len(observations),
        **check_outputs(chosen, actor, small, observations),
    }
    write(out, small, meta)
    console = Console()
    console.print(_comparison(meta, measure(actor, small)))
    console.print(
        f"times: NumPy on one thread of {cpu_model()}, medians of {_ROUNDS} slices taking turns\n"
        f"largest difference to the trained actor over {len(observations):,} observations, over its largest "
        f"output: {meta['largest_relative_difference']:.1e}, {meta['rounding_of_folded_normalizer']:.1e} by "
        f"folding the normaliser in\nwritten: {out}",
        soft_wrap=True,
    )


def exportable(path: Path) -> SavedRun:
    """The finished run whose actor is meant by a run folder. Raises ConfigError where there is not one."""
    runs, containers = load([path])
    read_summary(path)
    if containers and containers[0].kind != "ticket":
        raise ConfigError([f"{str(path)!r} holds several runs; name one run folder inside it"])
    chosen = max((each for each in runs if each.kind != "control" or not containers), key=lambda r: r.round)
    if chosen.summary is None:
        raise ConfigError([f"{str(chosen.path)!r} is not finished"])
    if not all(np.isfinite(leaf).all() for leaf in chosen.actor.values()):
        raise ConfigError([f"the actor of {str(chosen.path)!r} has weights that are not finite"])
    return chosen


def folded_actor(chosen: SavedRun) -> dict[str, np.ndarray]:
    """The actor on raw observations, float32."""
    mean, scale = _scaling(chosen)
    actor = {name: np.asarray(leaf, np.float64) for name, leaf in chosen.actor.items()}
    # In float64, with the bias made for the kernel as it was rounded: engine.networks.fold_normalizer, in
    # float32, loses several times as much where an input's mean is many times its spread.
    kernel = (actor["kernel_0"] * scale[:, None]).astype(np.float32)
    actor |= {"kernel_0": kernel, "bias_0": actor["bias_0"] - mean @ kernel}
    return {name: leaf.astype(np.float32) for name, leaf in actor.items()}


def _scaling(chosen: SavedRun) -> np.ndarray:
    """(2, o) float64, the mean and the scale that the actor was trained with."""
    return np.asarray(chosen.moments.scaling(chosen.config["variance_floor"]), np.float64)


def check_observations(chosen: SavedRun) -> np.ndarray:
    """Observations to check outputs on, (rows, o): the run's own if it kept any, else those of its source.

    Raises ConfigError where neither can be found.
    """
    source = chosen.source("dense")
    found = find_source(chosen.path, source) if source else None
    for folder in filter(None, (chosen.path, found)):
        hashed, listed = identify(folder)[1]["config_hash"], artifacts.files(folder)
        for name, key in (("saliency", "observation"), ("anchor-replay", "replay/observation")):
            if name not in listed:
                continue
            try:
                rows = artifacts.load(folder, name, hashed).arrays[key]
            except ConfigError:
                continue
            rows = rows.reshape(-1, rows.shape[-1])
            return rows[:: max(1, len(rows) // _ROWS)][:_ROWS]
    where = f" nor its source {source.path!r}" if source else ""
    raise ConfigError([f"neither {str(chosen.path)!r}{where} has observations to check the outputs on"])


def check_outputs(
    chosen: SavedRun, actor: Mapping[str, np.ndarray], small: CompactMLP, observations: np.ndarray
) -> dict[str, float]:
    """The largest difference to the trained actor, relative to its largest output, as the file says it.

    The trained actor is the masked network on normalised observations. All arithmetic is in float64, so that
    the networks are compared and not the order of float32 sums, which alone may change more. The second
    number is the part that comes from rounding the folded weights to float32, before units are taken out.
    Raises DifferentOutputsError where the exported actor differs by more than TOLERANCE.
    """
    rows = observations.astype(np.float64)
    mean, scale = _scaling(chosen)
    trained = forward(chosen.actor, (rows - mean) * scale)
    outputs = forward(small.parameters, rows[:, small.inputs]), forward(actor, rows)
    largest = max(np.abs(trained).max(), np.finfo(np.float64).tiny)
    whole, folding = (float(np.abs(values - trained).max() / largest) for values in outputs)
    if not whole <= TOLERANCE:
        raise DifferentOutputsError(
            f"the exported actor of {str(chosen.path)!r} differs from the trained one by {whole:.2e} "
            f"of the largest output, more than {TOLERANCE:.0e}; by {folding:.2e} after folding the "
            "normaliser in, which float32 cannot hold where inputs are many times larger than their spread"
        )
    return {"largest_relative_difference": whole, "rounding_of_folded_normalizer": folding}


def measure(actor: Mapping[str, np.ndarray], small: CompactMLP) -> dict[int, tuple[float, float]]:
    """Batch -> seconds of a call of (the masked network, the compact one), on one thread.

    Medians of slices that take turns, so that what else the machine does affects both. To select its inputs
    is a part of the compact network's time.
    """
    rng = np.random.default_rng(0)
    out = {}
    with threadpool_limits(1):
        for batch in BATCHES:
            x = rng.standard_normal((batch, len(actor["kernel_0"])), dtype=np.float32)
            names = {"forward": forward, "actor": actor, "small": small, "x": x}
            calls = "forward(actor, x)", "forward(small.parameters, x[:, small.inputs])"
            timers = [timeit.Timer(call, globals=names) for call in calls]
            counts = [max(1, int(_SLICE_SECONDS * 3 / timer.timeit(3))) for timer in timers]
            pairs = list(zip(timers, counts, strict=True))
            slices = [[timer.timeit(count) / count for timer, count in pairs] for _ in range(_ROUNDS)]
            masked, compacted = np.median(slices, axis=0).tolist()
            out[batch] = masked, compacted
    return out


def write(file: Path, small: CompactMLP, meta: Mapping[str, Any]) -> None:
    """inputs, kernel_i, bias_i and meta.json. Raises ConfigError if the file cannot be written."""

    def content(stream: BinaryIO) -> None:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("meta.json", json.dumps(meta, indent=2))
            for name, array in {"inputs": small.inputs, **small.parameters}.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    write_file(file, content)


def _facts(chosen: SavedRun, actor: Mapping[str, np.ndarray], small: CompactMLP) -> dict[str, Any]:
    """Where the actor is from, and its sizes before and after."""
    assert chosen.summary is not None
    total, exported = (sum(leaf.size for leaf in each.values()) for each in (actor, small.parameters))
    actions = math.prod(load_policy(chosen.path, chosen.manifest["config_hash"]).spec.action.shape)
    deviations = " and log standard deviation" if len(actor[f"bias_{len(actor) // 2 - 1}"]) > actions else ""
    pruned = sum(int((~kept).sum()) for kept in chosen.masks["actor"].values())
    return {
        "env": chosen.env,
        "env_kwargs": list(chosen.config["env_kwargs"]),
        "seed": chosen.seed,
        "run": chosen.label,
        "config_hash": chosen.manifest["config_hash"],
        "env_steps": chosen.summary["env_steps"],
        "actions": actions,
        "outputs": f"mean{deviations} of each action before tanh",
        "widths": {"trained": _widths(actor), "exported": _widths(small.parameters)},
        "parameters": {"trained": total, "kept": total - pruned, "exported": exported},
        "flops": flops.forward(chosen.masks["actor"], actor),
    }


def _widths(parameters: Mapping[str, np.ndarray]) -> list[int]:
    """Inputs, hidden units of each layer, outputs."""
    return [len(parameters["kernel_0"]), *(len(parameters[f"bias_{i}"]) for i in range(len(parameters) // 2))]


def _comparison(meta: Mapping[str, Any], times: Mapping[int, tuple[float, float]]) -> Table:
    table = Table(title=f"actor of {meta['env']} seed {meta['seed']}, {meta['run']}", box=None)
    for column in ("", "trained", "kept by the mask", "exported"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    before, after = meta["widths"].values()
    names = ["inputs", *(f"hidden layer {i}" for i in range(1, len(before) - 1)), "outputs"]
    for name, trained, exported in zip(names, before, after, strict=True):
        table.add_row(name, f"{trained:,}", "", f"{exported:,}")
    for name, counts in {"parameters": meta["parameters"], "FLOPs of a row": meta["flops"]}.items():
        table.add_row(name, *(f"{count:,}" for count in counts.values()))
    for batch, (masked, compacted) in times.items():
        cells = f"{masked * 1e6:,.1f} us", "", f"{compacted * 1e6:,.1f} us"
        table.add_row(f"time of a call, batch {batch}", *cells)
    return table


if __name__ == "__main__":
    given = tyro.cli(ExportArguments, description=__doc__, prog="python -m trainers.export")
    run(lambda: export(given))
