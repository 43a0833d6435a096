"""Checkpoints of no particular run, for tests of how they are written and chosen."""

from pathlib import Path

from pipeline.checkpoint.commit import RunRecord
from pipeline.checkpoint.identity import RunIdentity


def make_identity(**fields: object) -> RunIdentity:
    values = {
        "data_digest": "d", "tokenizer_sha256": "t", "sample_order": 1, "seed": 0,
        "global_batch_size": 10, "shuffle_block": 4, "streams": 1, "model": {"model.dim": 8},
    }  # fmt: skip
    return RunIdentity(**{**values, **fields})  # type: ignore[arg-type]


def make_record(tokenizer: Path, config: str = "seed: 0\n") -> RunRecord:
    return RunRecord(make_identity(), config, tokenizer)
