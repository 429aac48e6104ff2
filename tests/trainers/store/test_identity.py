"""What a run's hash covers: what differs from versioned defaults, its place, its sources, and no path."""

import dataclasses
from dataclasses import replace

import pytest

from engine.algorithms import CONFIGS
from fastcollect.support.errors import ConfigError
from fastcollect.support.plain import plain
from trainers.config import defaults as defaults_module
from trainers.config import yaml_file
from trainers.config.defaults import VERSION, defaults, differences
from trainers.config.sparse import SparseConfig
from trainers.config.training import StudyConfig, TrainConfig
from trainers.store.folder import RunFolder
from trainers.store.identity import Identity, SourceRef, dense_identity
from trainers.study.identities import default_path

SOURCE = SourceRef(role="dense", path="../dense", config_hash="0123", settings="abc", env="reach-v3")


def identity(config, **place):
    return Identity(**{"kind": "dense", "config": config, **place})


def test_the_file_of_defaults_says_what_the_classes_say():
    written = yaml_file.read(defaults_module.FOLDER / f"{VERSION}.yaml")
    algorithms = {name: plain(cls()) for name, cls in CONFIGS.items()}
    of_classes = {**plain(StudyConfig()), "algorithm": algorithms, "sparse": plain(SparseConfig())}
    advice = (
        f"the defaults of the classes and trainers/config/defaults/{VERSION}.yaml differ. A setting that is "
        "new: add it to that file, and older hashes stay. A default that changed: leave that file "
        f"as it is, write {VERSION + 1}.yaml with all defaults, and set VERSION to {VERSION + 1}"
    )
    changed = differences(of_classes, written) | differences(written, of_classes)
    assert not changed, f"{advice}: {changed}"


def test_a_new_setting_with_a_default_leaves_the_hash_as_it_is(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(TrainConfig):
        patience: float = 1.5

    old = TrainConfig(seed=3, env_kwargs=("physics=fast",))
    new = Later(seed=3, env_kwargs=("physics=fast",))
    later = {**defaults(old.algo), "patience": 1.5}
    before = dense_identity(old).hash()
    monkeypatch.setattr("trainers.store.identity.defaults", lambda algo, version: later)
    assert dense_identity(new).hash() == dense_identity(old).hash() == before
    assert dense_identity(replace(new, patience=2.0)).hash() != before


def test_a_hash_knows_values_and_not_their_order():
    base = {"a": 1, "b": {"x": [1, 2], "y": None}, "algorithm": {"discount": 0.9}}
    assert identity(base).hash() == identity(dict(reversed(base.items()))).hash()
    assert identity(base).hash() == identity({**base, "b": {"y": None, "x": (1, 2)}}).hash()
    assert len(identity(base).hash()) == 16
    others = [{**base, "a": 2}, {**base, "a": 1.0}, {**base, "a": "1"}, {**base, "b": {}}, {"a": 1}]
    others += [{**base, "a": True}, {**base, "algorithm": {"discount": 0.97}}, {**base, "seed": 1}]
    assert len({identity(config).hash() for config in [base, *others]}) == len(others) + 1


def test_a_default_that_is_written_out_is_no_difference():
    config = plain(TrainConfig())
    assert identity(config).hash() == identity({}).hash()
    for name in config:
        assert identity({k: v for k, v in config.items() if k != name}).hash() == identity({}).hash(), name


def test_every_setting_counts():
    hashes = {identity({}).hash()}
    for name, value in plain(StudyConfig()).items():
        hashes.add(identity({name: "other" if value != "other" else "another"}).hash())
    assert len(hashes) == len(dataclasses.fields(StudyConfig)) + 1


def test_a_hash_covers_the_place_and_the_sources_and_no_path():
    base = identity({}, kind="control", name="dense", round=2, sources=(SOURCE,))
    changes = [{"kind": "round"}, {"name": "other"}, {"round": 3}, {"sources": ()}]
    changes += [{"sources": (replace(SOURCE, config_hash="4567"),)}]
    assert len({base.hash(), *(replace(base, **each).hash() for each in changes)}) == len(changes) + 1
    moved = replace(base, config={"from": "/elsewhere"}, sources=(replace(SOURCE, path="/elsewhere"),))
    assert moved.hash() == base.hash()
    assert moved.settings() == base.settings()


def test_repetitions_share_their_settings_and_those_of_their_sources():
    base = identity({"seed": 0}, sources=(SOURCE,))
    same = replace(base, config={"seed": 5, "from": "x", "controls": True})
    assert same.settings() == base.settings() != identity({"seed": 0}).settings()
    assert same.hash() != base.hash()
    for other in (
        replace(base, config={"env_steps": 7}),
        replace(base, sources=(replace(SOURCE, settings="other"),)),
    ):
        assert other.settings() != base.settings()


def test_a_manifest_gives_the_identity_back():
    base = identity({"seed": 4, "env": "push-v3"}, kind="variant", name="mask-only", sources=(SOURCE,))
    assert Identity.of(base.config, base.facts()) == base
    for spoiled in ({}, {"run": {}}, {"run": {"kind": "no", "name": "", "round": 0}, "sources": []}):
        with pytest.raises((KeyError, ValueError)):
            Identity.of({}, spoiled)


@pytest.mark.parametrize("version", [VERSION + 1, 0, "1", None, "../1"])
def test_defaults_of_another_version_are_one_error(version):
    with pytest.raises(ConfigError, match="are not known here"):
        identity({}, defaults=version).hash()


def test_a_folder_by_older_defaults_is_found_where_all_values_are_the_same(tmp_path):
    config = {"stage": "ticket", "env": "reach-v3", "prune": {"scope": "global"}}
    now, before = identity(config), identity(config, defaults=1)
    assert VERSION > 1
    assert now.hash() != before.hash()
    assert default_path(tmp_path, now).name == f"ticket-seed0-{now.hash()[:8]}"
    path = default_path(tmp_path, before)
    with RunFolder.create(path, before, ["test"]):
        pass
    assert default_path(tmp_path, now) == path
    with RunFolder.create(path, now, ["test"], resume=True) as folder:
        assert folder.identity.defaults == 1
    # Another default is another value.
    other = identity({"stage": "ticket", "env": "reach-v3", "prune": {"scope": "erk"}})
    assert default_path(tmp_path, other) != path
    assert other.hash() == identity({"stage": "ticket", "env": "reach-v3"}).hash()
