"""Options of commands that replace the generation settings of a checkpoint."""

import argparse
from dataclasses import fields

import pytest

from pipeline.config.data import DataConfig
from pipeline.config.generation import GenerationConfig, describe, used_settings
from pipeline.config.run import Config
from pipeline.generation.options import add_generation_options, with_options
from shards.arguments import CommandParser

SAVED = GenerationConfig("beam", max_tokens=20, beam=3, length_penalty=0.7, block_unk=True)


def parser() -> CommandParser:
    made = CommandParser(prog="x", exit_on_error=False)
    add_generation_options(made)
    return made


def chosen(*options: str, saved: GenerationConfig = SAVED) -> GenerationConfig:
    arguments: argparse.Namespace = parser().parse_args(options)
    return with_options(Config(data=DataConfig(train="x"), generation=saved), arguments).generation


def test_without_options_a_checkpoint_is_decoded_as_it_was_validated() -> None:
    assert chosen() == SAVED


def test_options_replace_single_settings() -> None:
    found = chosen("--beam", "5", "--block-unk", "false", "--num_captions=5")
    assert found == GenerationConfig("beam", max_tokens=20, length_penalty=0.7, num_captions=5)


def test_another_method_keeps_only_the_settings_that_it_uses() -> None:
    assert chosen("--method", "greedy") == GenerationConfig(max_tokens=20, block_unk=True)
    sampled = chosen("--method", "sample", "--top_p", "0.9", "--seed", "4")
    assert sampled == GenerationConfig("sample", 20, block_unk=True, top_p=0.9, seed=4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--top_k", "5"), "--top_k: is for --method sample, but the method is beam"),
        (("--method", "greedy", "--beam", "3"), "--beam: is for --method beam or diverse_beam"),
        (("--beam", "0"), "--beam: must be 1 or more"),
        (("--num_captions", "4"), "--num_captions: must be 1 or more, and at most --beam"),
        (("--min_tokens", "21"), "--min_tokens: must be from 0 to --max_tokens, which is 20"),
        (("--method", "diverse_beam", "--groups", "2"), "--groups: must be a number that divides"),
        (("--method", "sample", "--temperature", "0"), "--temperature: must be above 0"),
        (("--method", "sample", "--top_p", "1.5"), "--top_p: must be above 0 and at most 1"),
        (("--method", "sampling"), "invalid choice"),
        (("--block_unk", "yes"), "invalid choice"),
        (("--beam", "three"), "invalid int"),
    ],
)
def test_a_mistake_names_the_option(options: tuple[str, ...], told: str) -> None:
    with pytest.raises(ValueError, match=r"^(?!.*generation\.)") as raised:
        chosen(*options)
    assert told in str(raised.value)


def test_every_setting_has_an_option_with_help() -> None:
    helps = {action.dest: action.help for action in parser()._actions}
    for field in fields(GenerationConfig):
        assert helps[field.name]
        assert len(str(helps[field.name])) > 20


def test_the_description_has_the_settings_that_are_used_and_not_off() -> None:
    assert describe(used_settings(GenerationConfig())) == "greedy (max_tokens 30)"
    expected = "beam (max_tokens 20, block_unk True, beam 3, length_penalty 0.7, num_captions 1)"
    assert describe(used_settings(SAVED)) == expected
    chosen = GenerationConfig("diverse_beam", max_tokens=9, diversity=0.0)
    assert "diversity 0.0" in describe(used_settings(chosen))
