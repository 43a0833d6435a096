"""The command-line parser of all commands: one option style, one-line errors.

It needs the standard library only, so a command answers `--help` before it imports anything slow.
"""

import argparse
import difflib
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

NUM_SUGGESTIONS = 2
LEAST_SIMILARITY = 0.6  # of 1, as difflib counts it

# Actions of argparse that collect the values of an option given several times.
REPEATABLE = ("_AppendAction", "_AppendConstAction", "_ExtendAction", "_CountAction")


class CommandParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` with the option style of this project.

    Declare options with underscores: help and errors show them so. On the command line
    `--global-batch-size` and `--global_batch_size` are the same option. Abbreviations are refused,
    and so is an option given twice unless its action collects values (`append`, `extend`, `count`).
    An error is one line that names the nearest options; the exit code is 2. Values, positional
    arguments and whatever follows `--` stay as they are. Subparsers behave alike.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self._given: set[argparse.Action] = set()
        self._unknown: list[str] = []

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse a whole command line; anything unknown ends the process with code 2."""
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = next(parser for parser in self._parsers_used() if parser._unknown)
            parser.error(parser._unknown_message())
        return namespace

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse what is known. Returns the namespace and the arguments that nobody knows."""
        for parser in self._parsers_used():
            parser._given, parser._unknown = set(), []
        try:
            namespace, self._unknown = super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:  # argparse's own answer to exit_on_error=False
            self.error(str(error))
        return namespace, self._unknown

    def error(self, message: str) -> NoReturn:
        """Print the message in one line and exit with code 2.

        Raises:
            ValueError: the message, where the parser was made with `exit_on_error=False`.
        """
        line = f"{' '.join(message.split())} (--help lists all options)"
        if not self.exit_on_error:
            raise ValueError(line)
        self.exit(2, f"{self.prog}: {line}\n")

    def _parsers_used(self) -> "Iterator[CommandParser]":
        """The subparsers, then this parser: the innermost one reports an unknown option."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    if isinstance(parser, CommandParser):
                        yield from parser._parsers_used()
        yield self

    def _unknown_message(self) -> str:
        options = [text for text in self._unknown if text.startswith("-") and text != "--"]
        if not options:
            return f"unexpected argument {self._unknown[0]!r}"
        name = options[0].partition("=")[0]
        known = [option for option in self._option_string_actions if option.startswith("--")]
        nearest = nearest_names(_with_underscores(name), known)
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        return f"unknown option {name}{hint}"

    # argparse has no public place to change how an option is spelled or to see that it comes again.

    def _parse_optional(self, arg_string: str) -> Any:
        """Called by argparse for each argument before `--`: which option it is, if it is one."""
        return super()._parse_optional(self._as_declared(arg_string))

    def _as_declared(self, text: str) -> str:
        name, equals, value = text.partition("=")
        if name in self._option_string_actions or not name.startswith("--"):
            return text
        for option in self._option_string_actions:
            if _with_underscores(option) == _with_underscores(name):
                return option + equals + value
        return text

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Called by argparse with the values of each option, once each time it is given."""
        if action.option_strings:
            if action in self._given and type(action).__name__ not in REPEATABLE:
                raise argparse.ArgumentError(action, "is given twice; give it once")
            self._given.add(action)
        return super()._get_values(action, arg_strings)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of an option, unless it has none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required or action.default in (None, False, [], ()):
            return action.help
        return super()._get_help_string(action)


def nearest_names(name: str, known: Sequence[str]) -> list[str]:
    """The known names that `name` may have been meant for, best first; at most two.

    A name of which `name` is the beginning counts before one that is merely similar.
    """
    longer = [option for option in known if option.startswith(name)] if len(name) > 3 else []
    similar = difflib.get_close_matches(name, known, NUM_SUGGESTIONS, LEAST_SIMILARITY)
    return list(dict.fromkeys([*longer, *similar]))[:NUM_SUGGESTIONS]


def _with_underscores(option: str) -> str:
    return "--" + option[2:].replace("-", "_") if option.startswith("--") else option
