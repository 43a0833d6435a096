"""The command-line parser: both spellings of an option, one-line errors, nothing given twice."""

import argparse
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.arguments import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(prog="tool")
    parser.add_argument("inputs", nargs="*")
    parser.add_argument("--global_batch_size", type=int, default=8, help="images a step")
    parser.add_argument("--out_dir", help="folder")
    parser.add_argument("--caption_column", action="append", default=[])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-v", "--verbose", action="count", default=0)
    parser.add_argument("--keep-case", action=argparse.BooleanOptionalAction)
    which = parser.add_argument_group("which").add_mutually_exclusive_group()
    which.add_argument("--from_file")
    which.add_argument("--from_url")
    return parser


def make_commands() -> CommandParser:
    parser = CommandParser(prog="tool")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser("build")
    build.add_argument("--job_index", type=int)
    build.add_argument("--images")
    commands.add_parser("show").add_argument("dir")
    return parser


def refusal(parser: CommandParser, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command line is refused."""
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(list(arguments))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    "given",
    [
        ("--global-batch-size", "4"), ("--global_batch_size", "4"), ("--global-batch_size=4",),
        ("--global_batch_size=4",),
    ],
)  # fmt: skip
def test_dashes_and_underscores_are_the_same_option(given: tuple[str, ...]) -> None:
    assert make_parser().parse_args(given).global_batch_size == 4


def test_options_of_groups_and_on_off_options_have_both_spellings() -> None:
    parser = make_parser()
    assert parser.parse_args(["--from-file", "x"]).from_file == "x"
    assert parser.parse_args(["--keep_case"]).keep_case is True
    assert parser.parse_args(["--no_keep_case"]).keep_case is False
    assert parser.parse_args(["--no-keep-case"]).keep_case is False


@given(st.lists(st.text(st.sampled_from("ab-_= ./")).filter(lambda t: not t.startswith("-"))))
def test_positional_arguments_and_values_stay_as_they_are(texts: list[str]) -> None:
    assert make_parser().parse_args(texts).inputs == texts
    for text in texts:
        assert make_parser().parse_args(["--out-dir", text]).out_dir == text
        assert make_parser().parse_args([f"--out-dir=--x{text}"]).out_dir == f"--x{text}"


def test_what_follows_two_dashes_is_no_option() -> None:
    parsed = make_parser().parse_args(["--json", "--", "--global-batch-size", "--out-dir"])
    assert parsed.inputs == ["--global-batch-size", "--out-dir"]
    assert parsed.json


def test_help_shows_underscores_and_only_real_defaults() -> None:
    text = make_parser().format_help()
    assert "--global_batch_size" in text
    assert "--global-batch-size" not in text
    assert "images a step (default: 8)" in text
    assert "None" not in text
    assert "False" not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--global-batch-sise", "4"], "unknown option --global-batch-sise; did you mean "
                                       "--global_batch_size?"),
        (["--global", "4"], "unknown option --global; did you mean --global_batch_size?"),
        (["--zzz"], "unknown option --zzz (--help"),
        (["--global_batch_size", "many"], "--global_batch_size"),
        (["--global_batch_size"], "--global_batch_size"),
        (["--from_file", "x", "--from_url", "y"], "not allowed with"),
        (["--json", "--out_dir", "a", "--json"], "--json: is given twice"),
        (["--out_dir", "a", "--out-dir", "b"], "--out_dir: is given twice"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    line = refusal(make_parser(), capsys, *arguments)
    assert line.startswith("tool: ")
    assert said in line


def test_options_that_collect_values_may_repeat() -> None:
    parsed = make_parser().parse_args(["--caption-column", "a", "--caption_column", "b", "-vv"])
    assert parsed.caption_column == ["a", "b"]
    assert parsed.verbose == 2


def test_a_parser_may_be_used_again(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_commands()
    for _ in range(2):
        assert parser.parse_args(["build", "--job-index", "3"]).job_index == 3
    assert "job_index" in refusal(parser, capsys, "build", "--job-indx", "3")
    assert parser.parse_args(["build"]).job_index is None


def test_subcommands_suggest_their_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_commands()
    line = refusal(parser, capsys, "build", "--imagse", "x")
    assert line.startswith("tool build: unknown option --imagse; did you mean --images?")
    assert "twice" in refusal(parser, capsys, "build", "--job-index", "1", "--job_index", "2")
    assert refusal(parser, capsys, "show", "x", "y").startswith(
        "tool show: unexpected argument 'y'"
    )
    assert refusal(parser, capsys, "--imagse", "build").startswith("tool: unknown option")


def test_known_arguments_can_be_parsed_alone() -> None:
    parsed, rest = make_parser().parse_known_args(["--out-dir", "x", "--other-one", "--json"])
    assert (parsed.out_dir, parsed.json, rest) == ("x", True, ["--other-one"])


def test_only_the_standard_library_is_imported() -> None:
    code = (
        "import sys, shards.arguments\n"
        "tops = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(name for name in tops if not name.startswith(('_', 'site', 'distutils'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "['shards']"
