"""Settings of the generation of captions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class GenerationConfig:
    """How captions are generated. A checkpoint keeps these settings for its later users.

    Args:
        method: `greedy` takes the most likely token at each step. `beam` searches for the most
            likely caption. `diverse_beam` searches in groups that avoid each other's words.
            `sample` draws each token at random.
        max_tokens: longest caption in tokens; a caption that is longer is cut there.
        min_tokens: shortest caption in tokens.
        no_repeat_ngram: no sequence of this many tokens occurs twice in a caption; 0 for no limit.
        block_unk: never generate the token that stands for unknown words.
        bad_endings: a caption never ends in an English article, preposition, conjunction or form of
            "to be" or "to have", such as "a", "with" or "is", nor in one before a full stop.
        forbidden_words: words that are never generated, separated by spaces.
        beam: number of beams; of all groups together, for `diverse_beam`.
        length_penalty: the log-probability of a caption of n tokens is divided by
            ((5 + n) / 6) ** length_penalty: 0 favours short captions, larger values longer ones.
        groups: number of groups of `diverse_beam`, which divides `beam`; null makes each beam a
            group.
        diversity: how much a token's log-probability is lowered in a group of `diverse_beam` for
            each beam of an earlier group that takes it at the same step.
        temperature: `sample` divides the log-probabilities by this number; below 1 it takes likely
            tokens more often.
        top_k: `sample` draws from this many most likely tokens; 0 draws from all.
        top_p: `sample` draws from the most likely tokens whose probabilities together reach this
            number; 1 draws from all.
        num_captions: captions of each image, the best first. Scores use the best one.
        seed: seed of `sample`. With the same seed an image always gets the same captions.
    """

    method: Literal["greedy", "beam", "diverse_beam", "sample"] = "greedy"
    max_tokens: int = 30
    min_tokens: int = 0
    no_repeat_ngram: int = 0
    block_unk: bool = False
    bad_endings: bool = False
    forbidden_words: str = ""
    beam: int = 5
    length_penalty: float = 0.0
    groups: int | None = None
    diversity: float = 0.5
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    num_captions: int = 1
    seed: int = 0


# The methods that use a setting, where some do not.
USED_BY = {
    "beam": ("beam", "diverse_beam"),
    "length_penalty": ("beam", "diverse_beam"),
    "groups": ("diverse_beam",),
    "diversity": ("diverse_beam",),
    "temperature": ("sample",),
    "top_k": ("sample",),
    "top_p": ("sample",),
    "num_captions": ("beam", "diverse_beam", "sample"),
    "seed": ("sample",),
}


def used_settings(config: GenerationConfig, method: str | None = None) -> dict[str, Any]:
    """The settings that a method uses, by default the configuration's own method."""
    method = method or config.method
    return {k: v for k, v in asdict(config).items() if method in USED_BY.get(k, (method,))}


def describe(used: Mapping[str, Any]) -> str:
    """How captions are generated, in one line: `beam (max_tokens 30, beam 5, ...)`.

    Args:
        used: as `used_settings` gives them. What is off by default and stays so is left out.
    """
    defaults = asdict(GenerationConfig())
    listed = ", ".join(
        f"{key} {value}"
        for key, value in used.items()
        if key != "method" and (value or value != defaults.get(key))
    )
    return f"{used['method']} ({listed})"


def same_captions(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the used settings of two configurations generate the same captions.

    One that was written by an earlier version lacks newer settings, which had their defaults.
    """
    defaults = asdict(GenerationConfig())
    return {**defaults, **one} == {**defaults, **other}
