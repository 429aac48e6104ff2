"""A short film of an actor on one goal of a Meta-World task, drawn by MuJoCo without a display.

Drawing happens in a process of its own, because a broken OpenGL can take the interpreter with it, and the
library that MuJoCo draws with is chosen once, at its import.

python -m trainers.report.film REQUEST.npz FILM.gif
"""

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BACKENDS = ("egl", "osmesa")
WIDTH, HEIGHT = 240, 180
EVERY = 4
LARGEST_FILM = 2_000_000
_STEP_MILLISECONDS = 12.5
_SECONDS = 240
_COLOURS = 64
_ACTIONS = 4
"""Of every Meta-World task."""


class Film(NamedTuple):
    """gif: its bytes, None where nothing could be drawn. text: what it shows, or why there is none."""

    gif: bytes | None
    text: str


def film(
    actor: Mapping[str, np.ndarray], env: str, kwargs: Mapping[str, Any], goal: int, horizon: int
) -> Film:
    """One episode of the deterministic actor, which acts on raw observations, in a Meta-World task.

    kwargs: of the environment; goal_visible and mt1_seed are read. horizon: steps to show.
    """
    options = {key: kwargs[key] for key in ("goal_visible", "mt1_seed") if key in kwargs}
    what = json.dumps({"env": env, "goal": goal, "horizon": horizon, **options})
    reasons = []
    with tempfile.TemporaryDirectory() as folder:
        request, out = Path(folder) / "request.npz", Path(folder) / "film.gif"
        arrays: dict[str, Any] = {"request": what, **actor}
        np.savez(request, **arrays)
        for name in BACKENDS:
            printed, problem = _call(name, [str(request), str(out)], _SECONDS)
            if problem is None:
                gif = out.read_bytes()
                if len(gif) > LARGEST_FILM:
                    return Film(None, f"No episode is shown: its film takes {len(gif):,} bytes.")
                return Film(gif, printed)
            reasons.append(f"{name}: {problem}")
    return Film(None, f"No episode is shown: MuJoCo cannot draw on this machine ({'; '.join(reasons)}).")


def _call(name: str, arguments: Sequence[str], seconds: float) -> tuple[str, str | None]:
    """What this module printed in a process of its own, and in a few words what went wrong."""
    command = [sys.executable, "-m", "trainers.report.film", *arguments]
    # The packages are found from any folder.
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "MUJOCO_GL": name, "PYTHONPATH": path.rstrip(os.pathsep)}
    # What PyOpenGL loads must be what MuJoCo asks for, whatever the user's shell says.
    environment.pop("PYOPENGL_PLATFORM", None)
    with tempfile.TemporaryDirectory() as folder:  # MuJoCo writes a log to where it runs
        try:
            done = subprocess.run(
                command, env=environment, cwd=folder, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return "", f"no answer within {seconds:.0f} s"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return "", (lines[-1].strip()[:200] if lines else f"the process ended with {done.returncode}")
    return done.stdout.strip(), None


# What runs in the process of its own.


def _draw(request: Path, out: Path) -> None:
    import mujoco
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    from engine.sparse.compact import forward
    from fastcollect.envs.metaworld.goals import mt1_tasks

    with np.load(request) as loaded:
        actor = dict(loaded)
    what = json.loads(str(actor.pop("request")))
    env = ALL_V3_ENVIRONMENTS[what["env"]]()
    tasks = mt1_tasks(what["env"], what.get("mt1_seed", 0), what.get("goal_visible", True))
    env.set_task(tasks[what["goal"]])
    observation, _ = env.reset()
    # Small and cheap pictures, as most machines without a display have no GPU either.
    env.model.vis.quality.shadowsize, env.model.vis.quality.offsamples = 0, 4
    view = mujoco.MjvCamera()
    view.lookat[:] = 0.0, 0.62, 0.12
    view.distance, view.azimuth, view.elevation = 1.35, 140, -28
    frames, first, total, success, truncated = [], None, 0.0, False, False
    # Closed here, as the interpreter's end is too late for some drivers.
    with mujoco.Renderer(env.model, HEIGHT, WIDTH) as renderer:
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = 0
        for step in range(what["horizon"] + 1):
            if step % EVERY == 0:
                renderer.update_scene(env.data, camera=view)
                frames.append(renderer.render())
            if step == what["horizon"] or truncated:
                break
            head = forward(actor, observation[None].astype(np.float32))[0]
            observation, reward, _, truncated, info = env.step(np.tanh(head[:_ACTIONS]))
            total, success = total + float(reward), bool(info["success"])
            first = step if success and first is None else first
    if not frames[0].any():
        raise RuntimeError("it draws nothing but black")
    out.write_bytes(_gif(frames))
    reached = "no success" if first is None else f"first success at step {first}"
    print(
        f"{what['env']}, goal {what['goal']} of 50, {step} steps: {reached}, "
        f"{'success' if success else 'no success'} at the last step, return {total:,.0f}"
    )


def _gif(frames: Sequence[np.ndarray]) -> bytes:
    """At about the speed of the simulation, and smaller where it would be too large to embed."""
    from PIL import Image

    for stride in (1, 2, 4, 8):
        chosen = [Image.fromarray(frame) for frame in frames[::stride]]
        # One palette for all: what does not move is then left out of the next picture.
        palette = chosen[len(chosen) // 2].quantize(_COLOURS)
        pictures = [each.quantize(palette=palette, dither=Image.Dither.NONE) for each in chosen]
        stream = io.BytesIO()
        options = {"duration": round(_STEP_MILLISECONDS * EVERY * stride), "loop": 0, "optimize": False}
        pictures[0].save(stream, "GIF", save_all=True, append_images=pictures[1:], **options)
        if stream.tell() <= LARGEST_FILM:
            break
    return stream.getvalue()


if __name__ == "__main__":
    _draw(Path(sys.argv[1]), Path(sys.argv[2]))
