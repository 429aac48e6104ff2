"""A short film of an actor on one goal of a Meta-World task, drawn by MuJoCo without a display.

Drawing happens in a process of its own, because a broken OpenGL can take the interpreter with it, and the
library that MuJoCo draws with is chosen once, at its import.

python -m trainers.report.film REQUEST.npz FILM.gif, or --probe
"""

from __future__ import annotations

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

from fastcollect.envs.registry import METAWORLD_TASKS

BACKENDS = ("egl", "osmesa")
WIDTH, HEIGHT = 240, 180
EVERY = 4
LARGEST_FILM = 2_000_000
_STEP_MILLISECONDS = 12.5
_PROBE_SECONDS, _FILM_SECONDS = 60, 240
_COLOURS = 64


class Film(NamedTuple):
    """gif: its bytes, None where nothing could be drawn. text: what it shows, or why there is none."""

    gif: bytes | None
    text: str


def backend() -> tuple[str | None, str]:
    """The first library that can draw here, or None and what each of them said."""
    reasons = []
    for name in BACKENDS:
        problem = _call(name, ["--probe"], _PROBE_SECONDS)[1]
        if problem is None:
            return name, ""
        reasons.append(f"{name}: {problem}")
    return None, "; ".join(reasons)


def film(
    actor: Mapping[str, np.ndarray], env: str, kwargs: Mapping[str, Any], goal: int, horizon: int
) -> Film:
    """One episode of the deterministic actor, which acts on raw observations.

    kwargs: of the environment; goal_visible and mt1_seed are read. horizon: steps to show.
    """
    if env not in METAWORLD_TASKS:
        return Film(None, f"No episode is shown: drawing is there for Meta-World's tasks, not for {env}.")
    name, reasons = backend()
    if name is None:
        return Film(None, f"No episode is shown: MuJoCo cannot draw on this machine ({reasons}).")
    options = {key: kwargs[key] for key in ("goal_visible", "mt1_seed") if key in kwargs}
    with tempfile.TemporaryDirectory() as folder:
        request, out = Path(folder) / "request.npz", Path(folder) / "film.gif"
        what = {"env": env, "goal": goal, "horizon": horizon, **options}
        np.savez(request, request=json.dumps(what), **actor)
        printed, problem = _call(name, [str(request), str(out)], _FILM_SECONDS)
        if problem is not None:
            return Film(None, f"No episode is shown: drawing it failed ({name}: {problem}).")
        gif = out.read_bytes()
    if len(gif) > LARGEST_FILM:
        return Film(None, f"No episode is shown: its film takes {len(gif):,} bytes.")
    return Film(gif, printed)


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


class _Camera:
    """Draws small pictures of a model, cheaply: most machines without a display have no GPU either."""

    def __init__(self, model: Any) -> None:
        import mujoco

        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 4
        self._renderer = mujoco.Renderer(model, HEIGHT, WIDTH)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = 0
        self._view = mujoco.MjvCamera()
        self._view.lookat[:] = 0.0, 0.62, 0.12
        self._view.distance, self._view.azimuth, self._view.elevation = 1.35, 140, -28

    def picture(self, data: Any) -> np.ndarray:
        """(HEIGHT, WIDTH, 3) uint8."""
        self._renderer.update_scene(data, camera=self._view)
        return self._renderer.render()

    def close(self) -> None:
        """Free the context, in this order: the interpreter's end is too late for some drivers."""
        self._renderer.close()


def _probe() -> None:
    import mujoco

    text = '<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>'
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = _Camera(model)
    picture = camera.picture(data)
    camera.close()
    if not picture.any():
        raise RuntimeError("it draws nothing but black")


def _draw(request: Path, out: Path) -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    from engine.sparse.compact import CompactMLP, forward
    from fastcollect.envs.metaworld.goals import mt1_tasks

    with np.load(request) as loaded:
        arrays = dict(loaded)
    what = json.loads(str(arrays.pop("request")))
    actor = CompactMLP(np.arange(len(arrays["kernel_0"])), arrays)
    env = ALL_V3_ENVIRONMENTS[what["env"]]()
    tasks = mt1_tasks(what["env"], what.get("mt1_seed", 0), what.get("goal_visible", True))
    env.set_task(tasks[what["goal"]])
    observation, _ = env.reset()
    camera = _Camera(env.model)
    frames, first, total, success = [camera.picture(env.data)], None, 0.0, False
    for step in range(what["horizon"]):
        head = forward(actor, observation[None].astype(np.float32))[0]
        observation, reward, _, truncated, info = env.step(np.tanh(head[: len(head) // 2]))
        total, success = total + float(reward), bool(info["success"])
        first = step if success and first is None else first
        if (step + 1) % EVERY == 0:
            frames.append(camera.picture(env.data))
        if truncated:
            break
    camera.close()
    out.write_bytes(_gif(frames))
    reached = "no success" if first is None else f"first success at step {first}"
    print(
        f"{what['env']}, goal {what['goal']} of 50, {step + 1} steps: {reached}, "
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
        milliseconds = round(_STEP_MILLISECONDS * EVERY * stride)
        pictures[0].save(
            stream,
            "GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=milliseconds,
            loop=0,
            optimize=False,
        )
        if stream.tell() <= LARGEST_FILM:
            break
    return stream.getvalue()


if __name__ == "__main__":
    if sys.argv[1:] == ["--probe"]:
        _probe()
    else:
        _draw(Path(sys.argv[1]), Path(sys.argv[2]))
