"""A real film, and why there is none; a real run as its report shows it."""

import os
import subprocess
import sys

import numpy as np
from support.page import Page

from trainers import command, export
from trainers.report import film, sections
from trainers.report.__main__ import ReportArguments, report

SMALL = ("--algorithm.hidden", "8", "--algorithm.batch-size", "8", "--collect.n", "2", "--collect.N", "1")


# A real run, and a real film.


def test_what_training_writes_is_what_the_report_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "film", film.film)
    steps = (
        "--env-steps",
        "600",
        "--start-steps",
        "100",
        "--anchor-steps",
        "200",
        "--evaluation.every",
        "300",
    )
    few = ("--evaluation.episodes", "2", "--updates-per-dispatch", "2")
    dense = tmp_path / "dense"
    flags = ["--env", "Pendulum-v1", *SMALL, *steps, *few, "--stage", "dense", "--run", str(dense)]
    command.main(flags)
    page = Page(report(ReportArguments(runs=(dense,), out=tmp_path / "out")))
    assert page.rows_of("Pendulum-v1", "dense", "1 of 1")
    assert "no finished run of a Meta-World task" in page.text
    export.export(export.ExportArguments(run=dense, out=tmp_path / "actor.npz"))
    assert np.load(tmp_path / "actor.npz")["inputs"].tolist() == [0, 1, 2]


PICTURE = """
import mujoco

model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
renderer = mujoco.Renderer(model, 20, 20)
renderer.update_scene(mujoco.MjData(model))
renderer.render()
renderer.close()
"""


def can_draw(name, folder):
    """Whether MuJoCo draws with this library, in a process that has nothing of ours."""
    environment = {**os.environ, "MUJOCO_GL": name}
    environment.pop("PYOPENGL_PLATFORM", None)
    command = [sys.executable, "-c", PICTURE]
    return not subprocess.run(command, env=environment, cwd=folder, capture_output=True).returncode


def test_a_film_is_small_and_drawn_wherever_mujoco_draws(tmp_path):
    actor = {"kernel_0": np.zeros((39, 8), np.float32), "bias_0": np.zeros(8, np.float32)}
    able = [name for name in film.BACKENDS if can_draw(name, tmp_path)]
    shown = film.film(actor, "reach-v3", {"goal_visible": False}, 3, 12)
    assert "ModuleNotFoundError" not in shown.text
    if not able:
        assert shown.gif is None
        assert all(f"{each}: " in shown.text for each in film.BACKENDS)
        return
    assert shown.gif.startswith(b"GIF8")
    assert len(shown.gif) < film.LARGEST_FILM
    assert "reach-v3, goal 3 of 50, 12 steps: no success" in shown.text


def test_without_a_renderer_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(film, "_call", lambda *_: ("", "it crashed"))
    shown = film.film({}, "reach-v3", {}, 0, 5)
    assert shown.gif is None
    assert "cannot draw on this machine (egl: it crashed; osmesa: it crashed)" in shown.text
    monkeypatch.undo()
    # A process that dies or hangs takes nothing with it; that one finds our packages, and no second argument.
    assert "IndexError" in film._call("egl", ["no-such"], 60)[1]
    assert "no answer within 0 s" in film._call("egl", ["no-such"], 0.01)[1]
