"""The sections of a report: what is said about runs, in tables and sentences, beside its figures."""

import re
from collections.abc import Sequence

from engine.sparse import masks as mask_functions
from engine.sparse.compact import compact, effective
from fastcollect.envs.registry import METAWORLD_TASKS
from fastcollect.support.command import parse_kwargs
from trainers.export import folded_actor
from trainers.report import figures, numbers, page
from trainers.report.film import film
from trainers.report.repetitions import Family, Repetitions, seeds
from trainers.store.layout import NETWORKS
from trainers.store.reader import SavedRun

Pictures = dict[str, bytes]
"""Names of files -> their content; sections add theirs."""

_BANDS = "Bands, brackets and whiskers run from the least to the greatest of the seeds."
_NO_TICKET = "There is no finished round of a ticket among the runs."


def results(groups: Sequence[Repetitions]) -> str:
    """One row for each group of seeds."""
    rows = []
    for group in groups:
        done = group.finished
        sparse = [numbers.text([run.sparsity(kind) for run in done], ".3f") for kind in NETWORKS]
        live = [[numbers.sparsity_without_constants(run, kind)[0] for run in done] for kind in NETWORKS]
        sparse += [numbers.text(values, ".3f") for values in live]
        rows.append(
            [group.env, group.label, f"{len(done)} of {len(group.runs)}", *numbers.results(done), *sparse]
        )
    columns = (
        "environment|run|finished|success any|success last|return|sparsity actor|sparsity critic|"
        "live actor|live critic"
    )
    caption = (
        "Last evaluation of each finished run: the mean over seeds and, in brackets, the least and the "
        "greatest where they differ. Sparsity is pruned over prunable weights, which are the kernels; biases "
        "are never pruned. Live: the same without the weights on inputs that never changed in the run, which "
        "is what a ticket's sparsity is set by."
    )
    return page.table(columns, rows, caption, texts=["run"])


def curves(groups: Sequence[Repetitions], pictures: Pictures) -> str:
    """Learning curves: dense and ticket, each round's controls, transfers."""
    caption = (
        "Thick: mean over the finished seeds, interpolated between evaluations, where all of them "
        "have values; band: least to greatest; thin: each run, dotted while it is unfinished."
    )
    parts = []
    for env in dict.fromkeys(group.env for group in groups):
        here = [group for group in groups if group.env == env]
        kinds = ("dense", "sparse", "round", "variant")
        dense, sparse, tickets, transfers = ([g for g in here if g.kind == k] for k in kinds)
        chosen: dict[str, tuple[str, list[Repetitions]]] = {}
        if dense or tickets:
            chosen["rounds"] = "dense and ticket" if tickets else "dense", dense + tickets
        if sparse:
            chosen["sparse"] = "sparse from the start", dense + sparse
        for number in sorted({group.runs[0].round for group in here if group.kind == "control"}):
            same = [g for g in here if g.runs[0].round == number and g.kind in ("round", "control")]
            chosen[f"controls-{number}"] = f"round {number} and its controls", dense + same
        if transfers:
            chosen["transfer"] = "transfers onto this task", dense + transfers
        for name, (what, members) in chosen.items():
            title = f"{env}: {what}"
            found = figures.curves(members, title)
            parts.append(_picture(pictures, f"curves-{env}-{name}", found, title, caption))
    return "".join(parts)


def sparsity(families: Sequence[Family], pictures: Pictures) -> str:
    """Results over sparsity."""
    caption = (
        f"{_BANDS} Dots are single runs. Controls have the ticket's sparsity and stand beside it only to "
        "be seen; the control without a mask has sparsity 0. Dashed: the dense runs that the tickets "
        "come from."
    )
    parts = []
    for family in families:
        title = f"{family.label} tickets: last evaluation against sparsity"
        found = figures.against_sparsity(family, title)
        parts.append(_picture(pictures, f"sparsity-{family.label}", found, title, caption))
        if not family.controls:
            text = "No controls were trained: mask and weights cannot be told apart."
            parts.append(page.element("p", text))
        if not family.dense:
            parts.append(page.element("p", "The dense run cannot be found, so its level is not drawn."))
    return "".join(parts) or page.element("p", "There is no ticket among the runs.")


def transfer(groups: Sequence[Repetitions]) -> str:
    """Every variant on every target, with its target's dense runs."""
    columns = "variant|seeds|any|last|return|best any|best last|best return|steps to any|steps to last"
    caption = (
        "any, last, return: success at any step, at the last step and mean return in the last "
        "evaluation. best: of all evaluations the one with the highest success, which flatters every "
        "variant alike. steps to: environment steps until an evaluation first reached the threshold in "
        "brackets."
    )
    parts = []
    for env in dict.fromkeys(group.env for group in groups if group.kind == "variant"):
        rows = []
        for group in groups:
            if group.env == env and group.kind in ("dense", "variant"):
                name = "its own dense run" if group.kind == "dense" else group.label
                rows.append([name, seeds(len(group.finished)), *_transfer_cells(group.finished)])
                if len(group.runs) > 1:
                    rows += [["", f"seed {run.seed}", *_transfer_cells([run])] for run in group.finished]
                rows += [["", f"seed {r.seed}", "unfinished", *[""] * 7] for r in group.runs if not r.summary]
        parts += [page.element("h3", f"Target {env}"), page.table(columns, rows, caption, texts=["seeds"])]
    return "".join(parts) or page.element("p", "There is no transfer among the runs.")


def _transfer_cells(runs: Sequence[SavedRun]) -> list[str]:
    cells = [*numbers.results(runs), *numbers.results(runs, "best")]
    reached = [run.summary["reached"] for run in runs if run.summary is not None]
    for name in ("success_any", "success_last"):
        found = [each[name] for each in reached if name in each]
        if not found:
            cells.append("not reached" if runs else "")
            continue
        part = "" if len(found) == len(runs) else f", {len(found)} of {len(runs)}"
        steps = numbers.text([each["env_steps"] for each in found], ",.0f")
        cells.append(f"{steps} [{found[0]['at']}{part}]")
    return cells


def masks(families: Sequence[Family], pictures: Pictures) -> str:
    """Densities, nestedness, overlap between seeds."""
    parts = []
    for family in (each for each in families if each.rounds):
        title = f"{family.label} tickets"
        densities, rows = {}, []
        for number, runs in family.rounds.items():
            found = [numbers.layers(run) for run in runs]
            densities[f"round {number}"] = {k: [float(each[k].mean()) for each in found] for k in found[0]}
            for run, layers in zip(runs, found, strict=True):
                counts = [f"{int(mask.sum()):,} of {mask.size:,}" for mask in layers.values()]
                rows.append([number, run.seed, *counts])
        text = f"{title}: density of each layer"
        figure = figures.layer_bars(densities, text, "kept weights, share of the layer")
        caption = f"Share of its weights that a layer keeps after each round. {_BANDS}"
        parts += [
            page.element("h3", title),
            _picture(pictures, f"density-{family.label}", figure, text, caption),
            page.table("|".join(["round", "seed", *found[0]]), rows, "Kept weights, exact counts."),
            page.element("p", _nestedness(family)),
            _overlap(family, title, pictures),
        ]
    return "".join(parts) or page.element("p", _NO_TICKET)


def _nestedness(family: Family) -> str:
    checked = numbers.nested(family)
    broken = [f"round {k} of seed {seed}" for (seed, k), good in checked.items() if not good]
    if broken:
        return f"Not nested in the round before: {', '.join(broken)}."
    if not checked:
        return "With one finished round there is nothing to be nested in."
    return (
        f"Nested: in all {len(checked)} pairs of successive rounds, the later mask keeps only what the "
        "earlier one kept."
    )


def _overlap(family: Family, title: str, pictures: Pictures) -> str:
    rows, figure = [], b""
    for number, runs in family.rounds.items():
        if len(runs) < 2:
            continue
        measured, expected = numbers.overlaps(runs)
        for name, values in measured.items():
            ratio = f"{sum(values) / len(values) / expected[name]:.2f}" if expected[name] else ""
            cells = numbers.text(values, ".3f"), f"{expected[name]:.3f}", ratio
            rows.append([number, name, len(runs), *cells])
        text = f"{title}: overlap of seeds' tickets, round {number}"
        figure = figures.layer_bars({"between seeds": measured}, text, "Jaccard index", expected)
    if not rows:
        return page.element("p", "One seed has no other seed's mask to overlap with.")
    columns = "round|layer|seeds|Jaccard index|expected of random masks|ratio"
    caption = (
        "Weights that two seeds' tickets both keep, over those that either keeps: mean, least and greatest "
        "over all pairs. Expected: the exact mean for random masks with as many weights in each layer. Seeds "
        "share no order of hidden units, so that equal networks with their units in another order need not "
        "overlap: more than expected says something, about which inputs or outputs are kept, for instance; "
        "no more than expected does not say that the tickets are unlike."
    )
    picture = _picture(pictures, f"overlap-{family.label}", figure, text, caption)
    return picture + page.table(columns, rows, texts=["layer"])


def inputs(families: Sequence[Family], pictures: Pictures) -> str:
    """Which inputs tickets keep, and what constant inputs do to sparsity."""
    caption = (
        "Share of an input's first-layer weights that the mask keeps after each round, mean over n runs. "
        "Constant: the input had one value in everything that every seed's last round saw, so that it is "
        "zero once normalised and its weights do nothing."
    )
    parts = []
    for family in (each for each in families if each.rounds):
        title = f"{family.label} tickets: kept inputs"
        found = figures.inputs(family, title)
        parts += [_picture(pictures, f"inputs-{family.label}", found, title, caption), _constants(family)]
    return "".join(parts) or page.element("p", _NO_TICKET)


def _constants(family: Family) -> str:
    rows = []
    for number, run in ((k, run) for k, runs in family.rounds.items() for run in runs):
        constant = numbers.constant_inputs(run)
        for kind in (kind for kind in NETWORKS if run.masks[kind]):
            without, idle = numbers.sparsity_without_constants(run, kind)
            kept = mask_functions.kept_inputs(run.masks[kind]).values()
            parts = mask_functions.networks(run.parameters[kind])
            networks = mask_functions.networks(run.masks[kind]).items()
            normalise = kind == "critic" and bool(run.config["algorithm"].get("critic_layer_norm"))
            reach = [compact(mask, parts[key], normalise).inputs for key, mask in networks]
            cells = [
                f"{run.sparsity(kind):.4f}",
                f"{without:.4f}",
                f"{idle:,}",
                f"{sum(effective(run.masks[kind]).values()):,}",
                f"{int(constant.sum())} of {len(constant)}",
                " + ".join(f"{each.sum()} of {each.size}" for each in kept),
                " + ".join(f"{len(inputs)}" for inputs in reach),
            ]
            rows.append([number, run.seed, kind, *cells])
    columns = (
        "round|seed|network|sparsity|without constant inputs|kept weights on constant inputs|"
        "effective weights|constant observations|inputs that keep a weight|inputs that reach an output"
    )
    caption = (
        "Without constant inputs: pruned over prunable weights, the first layer's weights on constant inputs "
        "counted in neither. Those weights do nothing, kept or pruned: to prune them is sparsity for free. "
        "Effective: on a path of kept weights from an input to an output."
    )
    return page.table(columns, rows, caption, texts=["network"])


def episode(runs: Sequence[SavedRun], pictures: Pictures) -> str:
    """A film of one episode, or why there is none."""
    known = [run for run in runs if run.summary is not None and run.env in METAWORLD_TASKS]
    if not known:
        text = "there is no finished run of a Meta-World task, which is what can be drawn."
        return page.element("p", f"No episode is shown: {text}")
    rank = {"round": 4, "sparse": 3, "dense": 2, "variant": 1, "control": 0}
    chosen = max(known, key=lambda run: (rank[run.kind], run.round))
    kwargs = parse_kwargs(chosen.config["env_kwargs"])
    shown = film(folded_actor(chosen), chosen.env, kwargs, 0, kwargs.get("horizon", 500))
    if shown.gif is None:
        return page.element("p", shown.text)
    pictures["figure-episode.gif"] = shown.gif
    caption = (
        f"Final deterministic actor of {chosen.label}, seed {chosen.seed}: {shown.text}. One goal of one "
        "seed is an illustration and no result."
    )
    return page.picture(shown.gif, "gif", f"an episode of {chosen.env}", caption)


def _picture(pictures: Pictures, name: str, content: bytes | None, title: str, caption: str) -> str:
    if content is None:
        return page.element("p", f"{title}: there is nothing finished to draw.")
    safe = re.sub(r"[^\w.-]", "_", name.replace(" [", "-").replace("]", ""))
    pictures[f"figure-{safe}.png"] = content
    return page.picture(content, "png", title, caption)
