"""What a run folder says of itself, and what is said of one that was changed or is another run's."""

import json

import pytest
from support.run_folders import CONFIG, create, error_of, identity, problems_of

from trainers.store.manifest import read_identity, read_manifest, read_summary


@pytest.mark.parametrize("text", ["", '{"a": ', "[]", "{}", "[" * 10**5, "\ud800"])
def test_a_spoiled_summary_is_one_error_that_names_it(tmp_path, text):
    with create(tmp_path / "run") as run:
        file = run.path / "summary.json"
        file.write_bytes(text.encode(errors="surrogatepass"))
        assert str(file) in error_of(run.finished)
    assert str(file) in error_of(create, tmp_path / "run")


def test_what_a_summary_lacks_is_named_with_its_file(tmp_path):
    with create(tmp_path / "run") as run:
        run.write_summary({"best": {"success": 1.0}, "reached": {}, "worst": float("nan")})
    there = ("best.success", "reached", "worst")
    assert read_summary(tmp_path / "run", there)["best"] == {"success": 1.0}
    problem = error_of(read_summary, tmp_path / "run", (*there, "seed", "best.steps", "worst.seed"))
    assert str(tmp_path / "run" / "summary.json") in problem
    assert problem.endswith("lacks seed, best.steps, worst.seed")


@pytest.mark.parametrize("resume", [False, True])
def test_another_configuration_is_refused_key_by_key(tmp_path, resume):
    create(tmp_path / "run").close()
    other = {**CONFIG, "seed": 2, "algorithm": {"rate": 1e-3, "hidden": [256, 256]}, "new": {}}
    del other["stop"]
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.name != ".lock"}
    problems = problems_of(create, tmp_path / "run", other, resume=resume)
    for text in ("seed is 1 there and 2 here", "algorithm.rate is 0.0006 there and 0.001 here"):
        assert sum(text in problem for problem in problems) == 1
    assert any("stop is null there and absent here" in problem for problem in problems)
    assert any("new is absent there and {} here" in problem for problem in problems)
    assert len(problems) == 4
    assert {path: path.read_bytes() for path in before} == before
    create(tmp_path / "run", resume=True).close()  # and is not locked


def test_a_difference_that_dots_hide_is_refused_too(tmp_path):
    create(tmp_path / "run", {"a.b": 1}).close()
    assert "another configuration" in error_of(create, tmp_path / "run", {"a": {"b": 1}})


def test_a_manifest_changed_by_hand_is_told(tmp_path):
    create(tmp_path / "run").close()
    file = tmp_path / "run" / "manifest.yaml"
    text = file.read_text()
    file.write_text(text.replace("seed: 1", "seed: 2"))
    for call in (read_identity, create):
        problem = error_of(call, tmp_path / "run")
        assert str(file) in problem
        assert "was changed" in problem
    for spoiled in (text.partition("manifest:")[0], text + "manifest: 5\n", text[:-40], "manifest: {}", ""):
        file.write_text(spoiled)
        assert str(file) in error_of(create, tmp_path / "run", resume=True)
        assert str(file) in error_of(read_identity, tmp_path / "run")
    file.write_text(text.replace("resumed: []", "resumed: 1"))
    assert str(file) in error_of(create, tmp_path / "run", resume=True)
    file.write_text(text)
    assert read_identity(tmp_path / "run") == (identity(), read_manifest(tmp_path / "run"))


def test_the_summary_is_strict_json(tmp_path):
    with create(tmp_path / "run") as run:
        run.write_summary({"a": [float("nan"), {"b": float("inf")}]})

        def refuse(text):
            raise AssertionError(text)

        json.loads((run.path / "summary.json").read_text(), parse_constant=refuse)
