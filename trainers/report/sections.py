"""The sections of a report: what is said about runs, in tables and sentences, beside its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from engine.sparse import masks as mask_functions
from engine.sparse.compact import compact
from fastcollect.envs.registry import METAWORLD_TASKS
from fastcollect.support.command import parse_kwargs
from trainers.report import figures, numbers, page
from trainers.report.film import film
from trainers.report.numbers import Family, Spread
from trainers.report.repetitions import Repetitions
from trainers.store.layout import NETWORKS
from trainers.store.reader import SavedRun

Pictures = dict[str, bytes]
"""Names of files -> their content; sections add theirs."""

_BANDS = "Bands, brackets and whiskers run from the least to the greatest of the seeds."
_HORIZON = 500


def results(groups: Sequence[Repetitions]) -> str:
    """One row for each group of seeds."""
    columns = "environment|run|finished|success any|success last|return|sparsity actor"
    rows = []
    for group in groups:
        done = group.finished
        share = f"{len(done)} of {len(group.runs)}"
        cells = [spread_text(numbers.of_summaries(done, key), form) for key, form in _FORMS.items()]
        sparse = [
            spread_text(numbers.spread([run.sparsity(kind) for run in done]), ".3f") for kind in NETWORKS
        ]
        rows.append([group.env, group.label, share, *cells, *sparse])
    caption = (
        "Last evaluation of each finished run: the mean over seeds and, in brackets, the least and the "
        "greatest where they differ. Sparsity is pruned over prunable weights, which are the kernels; biases "
        "are never pruned."
    )
    return page.table(f"{columns}|sparsity critic", rows, caption, texts=["run"])


_FORMS = {"success_any": ".2f", "success_last": ".2f", "return_mean": ",.0f"}


def curves(groups: Sequence[Repetitions], pictures: Pictures) -> str:
    """Learning curves: dense and ticket, each round's controls, transfers."""
    parts = []
    for env in dict.fromkeys(group.env for group in groups):
        here = [group for group in groups if group.env == env]
        dense = [group for group in here if group.kind == "dense"]
        tickets = [group for group in here if group.kind == "round"]
        transfers = [group for group in here if group.kind == "variant"]
        chosen: dict[str, tuple[str, list[Repetitions]]] = {}
        if dense or tickets:
            chosen["rounds"] = "dense and ticket" if tickets else "dense", dense + tickets
        for number in sorted({group.first.round for group in here if group.kind == "control"}):
            same = [g for g in here if g.first.round == number and g.kind in ("round", "control")]
            chosen[f"controls-{number}"] = f"round {number} and its controls", dense + same
        if transfers:
            chosen["transfer"] = "transfers onto this task", dense + transfers
        for name, (title, members) in chosen.items():
            found = figures.curves(members, f"{env}: {title}")
            caption = (
                "Thick: mean over the finished seeds, interpolated between evaluations, where all of them "
                "have values; band: least to greatest; thin: each run, dotted while it is unfinished."
            )
            parts.append(_picture(pictures, f"curves-{env}-{name}", found, f"{env}: {title}", caption))
    return "".join(parts) or page.paragraph("No run has an evaluation yet.")


def sparsity(families: Sequence[Family], pictures: Pictures) -> str:
    """Results over sparsity."""
    parts = []
    for family in families:
        title = f"{family.label} tickets: last evaluation against sparsity"
        found = figures.against_sparsity(family, title)
        caption = (
            f"{_BANDS} Dots are single runs. Controls have the ticket's sparsity and stand beside it only to "
            "be seen; the control without a mask has sparsity 0. Dashed: the dense runs that the tickets "
            "come from."
        )
        parts.append(_picture(pictures, f"sparsity-{family.label}", found, title, caption))
        if not family.controls:
            parts.append(page.paragraph("No controls were trained: mask and weights cannot be told apart."))
        if not family.dense:
            parts.append(page.paragraph("The dense run cannot be found, so its level is not drawn."))
    return "".join(parts) or page.paragraph("There is no ticket among the runs.")


def transfer(groups: Sequence[Repetitions]) -> str:
    """Every variant on every target, with its target's dense runs."""
    parts = []
    for env in dict.fromkeys(group.env for group in groups if group.kind == "variant"):
        rows = []
        for group in groups:
            if group.env == env and group.kind in ("dense", "variant"):
                name = "its own dense run" if group.kind == "dense" else group.label
                rows.append([name, group.seeds(group.finished), *_transfer_cells(group.finished)])
                if len(group.runs) > 1:
                    rows += [["", f"seed {run.seed}", *_transfer_cells([run])] for run in group.finished]
                rows += [["", f"seed {r.seed}", "unfinished", *[""] * 7] for r in group.runs if not r.summary]
        columns = "variant|seeds|any|last|return|best any|best last|best return|steps to any|steps to last"
        caption = (
            "any, last, return: success at any step, at the last step and mean return in the last "
            "evaluation. best: of all evaluations the one with the highest success, which flatters every "
            "variant alike. steps to: environment steps until an evaluation first reached the threshold in "
            "brackets."
        )
        parts += [page.heading(f"Target {env}"), page.table(columns, rows, caption, texts=["seeds"])]
    return "".join(parts) or page.paragraph("There is no transfer among the runs.")


def _transfer_cells(runs: Sequence[SavedRun]) -> list[str]:
    cells = [
        spread_text(numbers.of_summaries(runs, key, part), form)
        for part in (None, "best")
        for key, form in _FORMS.items()
    ]
    for name in ("success_any", "success_last"):
        reached = [run.summary["reached"][name] for run in runs if name in run.summary["reached"]]
        if not reached:
            cells.append("not reached" if runs else "")
            continue
        text = spread_text(numbers.spread([each["env_steps"] for each in reached]), ",.0f")
        part = "" if len(reached) == len(runs) else f", {len(reached)} of {len(runs)}"
        cells.append(f"{text} [{reached[0]['at']}{part}]")
    return cells


def _finished(families: Sequence[Family]) -> Iterator[tuple[Family, str, dict[int, list[SavedRun]]]]:
    """Families with a finished round, their titles, and the finished runs of each round."""
    for family in families:
        if finished := family.finished():
            yield family, f"{family.label} tickets", finished


def masks(families: Sequence[Family], pictures: Pictures) -> str:
    """Densities, nestedness, overlap between seeds."""
    parts = []
    for family, title, finished in _finished(families):
        parts.append(page.heading(title))
        found = figures.densities(family, f"{title}: density of each layer")
        caption = f"Share of its weights that a layer keeps after each round. {_BANDS}"
        name = f"density-{family.label}"
        parts += [_picture(pictures, name, found, f"{title}: densities", caption), _counts(finished)]
        parts += [page.paragraph(_nestedness(family)), _overlap(family, title, pictures)]
    return "".join(parts) or page.paragraph("There is no finished round of a ticket among the runs.")


def _counts(finished: Mapping[int, Sequence[SavedRun]]) -> str:
    names = list(numbers.layers(next(iter(finished.values()))[0]))
    rows = []
    for number, runs in finished.items():
        for run in runs:
            layers = numbers.layers(run)
            kept = [f"{int(layers[name].sum()):,} of {layers[name].size:,}" for name in names]
            rows.append([number, run.seed, *kept])
    return page.table("|".join(["round", "seed", *names]), rows, "Kept weights, exact counts.")


def _nestedness(family: Family) -> str:
    checked = [
        (seed, k, good) for seed, rounds in numbers.nested(family).items() for k, good in rounds.items()
    ]
    broken = [f"round {k} of seed {seed}" for seed, k, good in checked if not good]
    if broken:
        return f"Not nested in the round before: {', '.join(broken)}."
    if not checked:
        return "With one finished round there is nothing to be nested in."
    return (
        f"Nested: in all {len(checked)} pairs of successive rounds, the later mask keeps only what the "
        "earlier one kept."
    )


def _overlap(family: Family, title: str, pictures: Pictures) -> str:
    rows = []
    last: dict[str, tuple[Spread, float]] = {}
    for number, runs in family.finished().items():
        if found := numbers.overlaps(runs):
            last = found
            for name, (measured, expected) in found.items():
                ratio = f"{measured.mean / expected:.2f}" if expected else ""
                rows.append([number, name, len(runs), spread_text(measured, ".3f"), f"{expected:.3f}", ratio])
    if not rows:
        return page.paragraph("One seed has no other seed's mask to overlap with.")
    columns = "round|layer|seeds|Jaccard index|expected of random masks|ratio"
    caption = (
        "Weights that two seeds' tickets both keep, over those that either keeps: mean, least and greatest "
        "over all pairs. Expected: the exact mean for random masks with as many weights in each layer. Seeds "
        "share no order of hidden units, so that equal networks with their units in another order need not "
        "overlap: more than expected says something, about which inputs or outputs are kept, for instance; "
        "no more than expected does not say that the tickets are unlike."
    )
    text = f"{title}: overlap of seeds' tickets, round {rows[-1][0]}"
    return _picture(
        pictures, f"overlap-{family.label}", figures.overlap(last, text), text, caption
    ) + page.table(columns, rows, texts=["layer"])


def inputs(families: Sequence[Family], pictures: Pictures) -> str:
    """Which inputs tickets keep, and what constant inputs do to sparsity."""
    parts = []
    for family, title, finished in _finished(families):
        text = f"{title}: kept inputs"
        caption = (
            "Share of an input's first-layer weights that the mask keeps after each round, mean over n runs. "
            "Constant: the input had one value in everything that every seed's last round saw, so that it is "
            "zero once normalised and its weights do nothing."
        )
        found = figures.inputs(family, text)
        parts.append(_picture(pictures, f"inputs-{family.label}", found, text, caption))
        parts.append(_constants(finished))
    return "".join(parts) or page.paragraph("There is no finished round of a ticket among the runs.")


def _constants(finished: Mapping[int, Sequence[SavedRun]]) -> str:
    rows = []
    for number, runs in finished.items():
        for run in runs:
            constant = numbers.constant_inputs(run)
            for kind in (kind for kind in NETWORKS if run.masks[kind]):
                without, idle = numbers.sparsity_without_constants(run, kind)
                kept = mask_functions.kept_inputs(run.masks[kind]).values()
                reach = _reaching(run, kind)
                cells = [
                    f"{run.sparsity(kind):.4f}",
                    f"{without:.4f}",
                    f"{idle:,}",
                    f"{int(constant.sum())} of {len(constant)}",
                    " + ".join(f"{int(each.sum())} of {each.size}" for each in kept),
                    " + ".join(map(str, reach)),
                ]
                rows.append([number, run.seed, kind, *cells])
    columns = (
        "round|seed|network|sparsity|without constant inputs|kept weights on constant inputs|"
        "constant observations|inputs that keep a weight|inputs that reach an output"
    )
    caption = (
        "Without constant inputs: pruned over prunable weights, the first layer's weights on constant inputs "
        "counted in neither. Those weights do nothing, kept or pruned: to prune them is sparsity for free."
    )
    return page.table(columns, rows, caption, texts=["network"])


def _reaching(run: SavedRun, kind: str) -> list[int]:
    parts = mask_functions.networks(run.masks[kind])
    networks = mask_functions.networks(run.parameters[kind])
    return [len(compact(parts[prefix], leaves).inputs) for prefix, leaves in networks.items()]


def episode(
    runs: Sequence[SavedRun], pictures: Pictures, folded: Callable[[SavedRun], Mapping[str, Any]]
) -> str:
    """A film of one episode, or why there is none. folded: run -> its actor on raw observations."""
    known = [run for run in runs if run.summary is not None and run.env in METAWORLD_TASKS]
    if not known:
        return page.paragraph(
            "No episode is shown: there is no finished run of a Meta-World task, which is what can be drawn."
        )
    rank = {"round": 3, "dense": 2, "variant": 1, "control": 0}
    chosen = max(known, key=lambda run: (rank[run.kind], run.round))
    kwargs = parse_kwargs(chosen.config["env_kwargs"])
    shown = film(folded(chosen), chosen.env, kwargs, 0, kwargs.get("horizon", _HORIZON))
    if shown.gif is None:
        return page.paragraph(shown.text)
    pictures["figure-episode.gif"] = shown.gif
    caption = (
        f"Final deterministic actor of {chosen.label}, seed {chosen.seed}: {shown.text}. One goal of one "
        "seed is an illustration and no result."
    )
    return page.picture(shown.gif, "gif", f"an episode of {chosen.env}", caption)


def _picture(pictures: Pictures, name: str, content: bytes | None, title: str, caption: str) -> str:
    if content is None:
        return page.paragraph(f"{title}: there is nothing finished to draw.")
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name.replace(" [", "-").replace("]", ""))
    pictures[f"figure-{safe}.png"] = content
    return page.picture(content, "png", title, caption)


def spread_text(found: Spread | None, form: str) -> str:
    """Mean and, of several, least and greatest."""
    if found is None:
        return ""
    low, high = format(found.low, form), format(found.high, form)
    return f"{found.mean:{form}}" if low == high else f"{found.mean:{form}} ({low} to {high})"
