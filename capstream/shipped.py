"""Files that are installed with Capstream, found by their bare names from any folder."""

from pathlib import Path


def find_shipped(arguments: list[str], option: str, folder: Path) -> list[str]:
    """Replace the value of an option by the shipped file of that name.

    A value that names an existing file stays as it is. Otherwise `demo`, `demo.yaml` and
    `configs/demo.yaml` all mean `demo.yaml` in the folder, if there is one.

    Args:
        arguments: a command line.
        option: spelt with underscores, such as `--config_file`.
        folder: of the shipped YAML files.

    Returns:
        The command line with the path of the shipped file in the place of its name, in the form
        that was given: `--option=PATH`, or `--option` and `PATH`.
    """
    found = list(arguments)
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name[:2] + name[2:].replace("-", "_") != option:
            continue
        if not equals and number + 1 == len(arguments):
            break
        place = number if equals else number + 1
        value = value if equals else arguments[place]
        file = folder / f"{Path(value).name.removesuffix('.yaml')}.yaml"
        named = Path(value).parent in (Path(), Path(folder.name))
        if named and not Path(value).is_file() and file.is_file():
            found[place] = f"{name}={file}" if equals else str(file)
    return found
