"""Configurations as YAML: plain mappings, read strictly."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fastcollect.support.errors import ConfigError


def read(file: Path) -> dict[str, Any]:
    """The mapping in a file. Raises ConfigError naming the file and the line of what cannot be read."""
    try:
        text = file.read_bytes().decode()
        mapping = yaml.load(text, Loader=_Loader)
    except OSError as error:
        raise ConfigError([f"{str(file)!r} cannot be read: {error.strerror or error}"]) from None
    except UnicodeDecodeError as error:
        raise _problem(file, error.object[: error.start].count(b"\n"), "it is no UTF-8 text") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n")
        raise _problem(file, line, f"the character {chr(error.character)!r} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise _problem(file, error.problem_mark.line if error.problem_mark else 0, problem) from None
    except RecursionError:
        raise _problem(file, 0, "it is nested too deeply") from None
    if not isinstance(mapping, dict):
        raise _problem(file, 0, "a configuration is lines of the form key: value")
    return mapping


def dump(content: Mapping[str, Any]) -> str:
    """The text that ``read`` reads as this content, which is plain data."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100)


def _problem(file: Path, line: int, problem: str) -> ConfigError:
    return ConfigError([f"{str(file)!r}, line {line + 1}: {problem}"])


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Loader(yaml.SafeLoader):
    """Plain data: every key a text and there once, and no alias, of which a few lines can make gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refused(f"the key {key!r} is no text; put it in quotes", key_node)
            if key in seen:
                raise _refused(f"the key {key!r} is there twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
            # What the library's constructors raise for values that only look like numbers or dates.
            raise _refused(f"this is no value: {error}", node) from None


def _refused(problem: str, node: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


# YAML 1.1 reads 6e-4 as a text, as it has no dot, and 1.5e3, as its exponent has no sign.
_FLOAT = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
