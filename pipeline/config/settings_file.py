"""The settings in a YAML file, each with the line that it stands in."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml


class GivenSetting(NamedTuple):
    """One setting as a user gave it."""

    key: str  # such as optim.lr
    value: object
    source: str  # where it was given, such as "configs/demo.yaml, line 3: "; empty for an option


def read_settings(path: Path, sections: Collection[str]) -> list[GivenSetting]:
    """Read a YAML file of settings.

    Args:
        path: the file.
        sections: keys of the mappings to descend into, such as `model` and `model.encoder`.
    Returns:
        The settings in the order of the file. Their keys and types have not been checked.
    Raises:
        ValueError: the file cannot be read or is no mapping, or a key occurs twice; the message
            names the file and, where there is one, the line.
    """
    try:
        loader = yaml.SafeLoader(path.read_bytes())
        root = loader.get_single_node()
        return [] if root is None else list(_settings(loader, root, path, sections, ""))
    except OSError as error:
        reason = "is a folder; name a YAML file" if path.is_dir() else error.strerror
        beside = ", ".join(sorted(file.name for file in path.parent.glob("*.yaml")))
        hint = f"; {path.parent} holds {beside}" if beside else ""
        raise ValueError(f"{path}: {reason}{hint}") from None
    except yaml.MarkedYAMLError as error:
        line = _line(path, error.problem_mark) if error.problem_mark else f"{path}: "
        raise ValueError(f"{line}the YAML is broken: {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise ValueError(f"{path}: is not YAML text: {' '.join(str(error).split())}") from None


def as_yaml(value: object) -> str:
    """A value as a YAML file would hold it, in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1 << 16)
    return text.splitlines()[0]


def _settings(
    loader: yaml.SafeLoader, node: yaml.Node, path: Path, sections: Collection[str], section: str
) -> Iterator[GivenSetting]:
    if not isinstance(node, yaml.MappingNode):
        what = f"{section}: is a section: write" if section else "expected"
        raise ValueError(f"{_line(path, node.start_mark)}{what} lines of the form `name: value`")
    _refuse_repeated(node, path, section)
    loader.flatten_mapping(node)  # follows `<<: *anchor`
    for key_node, value_node in node.value:
        name = key_node.value if isinstance(key_node, yaml.ScalarNode) else "(not a name)"
        key = f"{section}.{name}" if section else name
        if key not in sections:
            value = loader.construct_object(value_node, deep=True)
            yield GivenSetting(key, value, _line(path, key_node.start_mark))
        elif value_node.tag != "tag:yaml.org,2002:null":  # a section may be empty
            yield from _settings(loader, value_node, path, sections, key)


def _refuse_repeated(node: yaml.MappingNode, path: Path, section: str) -> None:
    seen = set()
    for key_node, _ in node.value:
        if isinstance(key_node, yaml.ScalarNode):
            if key_node.value in seen:
                key = f"{section}.{key_node.value}" if section else key_node.value
                raise ValueError(f"{_line(path, key_node.start_mark)}{key}: is given twice")
            seen.add(key_node.value)


def _line(path: Path, mark: yaml.Mark) -> str:
    return f"{path}, line {mark.line + 1}: "
