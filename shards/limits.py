"""What a build may lose: the limits --max_rejected and --max_unk."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shards.build import ShardJob, tokenise
from shards.format.names import QUARANTINE
from shards.format.sidecar import Sidecar
from shards.plain_captions import fast_encoder
from shards.tokenizer import unknown_words

UNK_SAMPLE = 2_000  # records whose captions are tried before anything is packed
NUM_NAMED = 10  # unknown words that an error lists


def check_unknown_words(
    jobs: Sequence[ShardJob], tokenizer: Tokenizer, path: Path, max_unk: float
) -> None:
    """Refuse a tokenizer that does not fit the captions, before hours are spent on packing.

    It looks at the first records of the plan, which are a random draw; `check_unk` counts all.

    Raises:
        ValueError: more than `max_unk` of the tokens are UNK; the most frequent of these words are
            named.
    """
    encode = fast_encoder(tokenizer)
    num_tokens = 0
    unknown: Counter[str] = Counter()
    for record in islice((record for job in jobs for record in job.records), UNK_SAMPLE):
        captions, tokens, _ = tokenise(record, encode)
        num_tokens += sum(map(len, tokens))
        for caption in captions:
            unknown.update(unknown_words(tokenizer, caption))
    if unknown.total() > max_unk * num_tokens:
        words = ", ".join(f"{word!r} ({count:,})" for word, count in unknown.most_common(NUM_NAMED))
        raise ValueError(
            f"{path}: {unknown.total() / num_tokens:.1%} of the captions' tokens are UNK, more "
            f"than --max_unk {max_unk:.1%}. The most frequent words that it lacks: {words}. "
            f"{unk_advice(jobs[0].build['name'], 'build with it')}"
        )


def check_unk(folder: Path, sidecars: Sequence[Sidecar], max_unk: float) -> None:
    """Refuse a data set of which too many tokens are UNK.

    Raises:
        ValueError: more than `max_unk` of the tokens are UNK.
    """
    num_unk = sum(sidecar.num_unk for sidecar in sidecars)
    num_tokens = sum(sidecar.num_tokens for sidecar in sidecars)
    if num_unk > max_unk * num_tokens:
        raise ValueError(
            f"{folder}: {num_unk:,} of {num_tokens:,} tokens ({num_unk / num_tokens:.1%}) are UNK, "
            f"more than --max_unk {max_unk:.1%}. "
            f"{unk_advice(sidecars[0].build['name'], 'build into a new folder')}"
        )


def unk_advice(name: str, and_then: str) -> str:
    """What to do about too many UNK tokens in the data set `name`.

    Only a training set may get a new tokenizer: a validation set packed with its own would hold ids
    that mean other words to the model.

    Args:
        and_then: what to do with the new tokenizer.
    """
    keep = "keep the tokenizer of the training set and raise --max_unk"
    if not name.startswith("train"):
        return (
            f"This is the set {name!r}: {keep}. If it is a training set, make a tokenizer from "
            f"these captions (python -m shards tokenizer) and {and_then}"
        )
    return (
        "If this is the training set, make a tokenizer from these captions (python -m shards "
        f"tokenizer), with a lower --min_count or --kind bpe, and {and_then}. If it is a "
        f"validation or test set, {keep}"
    )


def check_rejected(folder: Path, sidecars: Sequence[Sidecar], max_rejected: float) -> None:
    """Refuse a data set of which too many records or captions were rejected.

    Raises:
        ValueError: more than `max_rejected` of the records or of the captions; gives the reasons.
    """
    entries = [entry for sidecar in sidecars for entry in sidecar.quarantine]
    num_captions = sum(entry["caption"] is not None for entry in entries)
    parts = (
        ("records", len(entries) - num_captions, sum(s.num_records for s in sidecars)),
        ("captions", num_captions, num_captions + sum(s.num_captions for s in sidecars)),
    )
    for what, rejected, total in parts:
        if rejected > max_rejected * total:
            raise ValueError(
                f"{folder}: {rejected:,} of {total:,} {what} ({rejected / total:.1%}) were "
                f"rejected, more than --max_rejected {max_rejected:.1%}: {_reasons(entries)}."
                f"{_where_looked(entries)} "
                f"{folder / QUARANTINE} names each. The same build tries missing and unreadable "
                "files again; if you repaired other files, build into a new folder; to accept the "
                "loss, raise --max_rejected"
            )


def _where_looked(entries: Sequence[dict[str, Any]]) -> str:
    """What to check if files are missing: most often --images names the folder above or below."""
    if any(entry["reason"] == "missing file" for entry in entries):
        return " File names are relative to the folder that --images names."
    return ""


def _reasons(entries: Sequence[dict[str, Any]]) -> str:
    """The number of entries for each reason, with an example."""
    examples = {entry["reason"]: entry["file_name"] for entry in reversed(entries)}
    counts = Counter(entry["reason"] for entry in entries)
    return "; ".join(f"{r}: {n:,}, such as {examples[r]}" for r, n in counts.most_common())
