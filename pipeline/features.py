"""Encode a data set once with a frozen backbone, into shards of features.

python -m pipeline.features --config RECIPE --shards DIR_OR_URL --out DIR_OR_URL

Training and evaluation then read the features in place of the images, in the same sample order. The
checkpoint holds the backbone too, and captions images. The settings model.encoder.*,
model.decoder.kind, data.image_size, data.min_crop and seed are those of the training. On several
GPUs: accelerate launch -m pipeline.features with the same options. A command that was stopped
continues when it is run again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtime.errors import usage_errors
from pipeline.runtime.world import World, read_world
from shards.arguments import CommandParser

if TYPE_CHECKING:  # torch takes seconds to import, and `--help` does not need it
    from pipeline.config.run import Config
    from pipeline.evaluation.feature_job import FeatureJob
    from pipeline.model.encoders.image_encoder import ImageEncoder


def main(prog: str = "python -m pipeline.features") -> int:
    """Command line. Returns the exit code."""
    with usage_errors("features"):
        world = read_world()
    with usage_errors("features", world):
        arguments, settings = _parser(prog).parse_known_args()
        _check(arguments)
        config, encoder = _read_encoder(arguments, settings)
        job = _make_job(arguments, config, encoder, world)
    # A bad sample or a full disk is met by one process, which does not leave its line to others.
    with usage_errors("features"):
        _encode(job, encoder, world, arguments.json)
    return 0


def _parser(prog: str) -> CommandParser:
    parser = CommandParser(
        prog=prog,
        exit_on_error=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [--SECTION.NAME VALUE ...]",
    )
    parser.add_argument("--shards", required=True, help="path or URL of the images' shards")
    parser.add_argument("--out", required=True, help="folder or URL of the features")
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="settings of the training"
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="take settings and backbone of this checkpoint instead"
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        default="float16",
        help="of the stored numbers (default: float16)",
    )
    parser.add_argument(
        "--views",
        type=int,
        default=1,
        help="views of an image: the center crop, then random crops; training chooses one of them "
        "in each epoch (default: 1)",
    )
    parser.add_argument("--flip", action="store_true", help="mirror every second view")
    parser.add_argument(
        "--batch_size", type=int, default=32, help="images encoded at once (default: 32)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="loader workers of each process (default: 2)"
    )
    parser.add_argument("--cache_dir", help="folder for shards behind a URL")
    parser.add_argument(
        "--cache_gb", type=float, default=50.0, help="limit of these, in 10**9 bytes (default: 50)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as a JSON object")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    for name, least in (("views", 1), ("batch_size", 1), ("workers", 0)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name}: {getattr(arguments, name)}: must be {least} or more")
    if not 0 < arguments.cache_gb < math.inf:
        raise ValueError(f"--cache_gb: {arguments.cache_gb}: must be above 0, and finite")
    if arguments.flip and arguments.views < 2:
        raise ValueError("--flip: needs --views 2 or more")


def _read_encoder(
    arguments: argparse.Namespace, settings: list[str]
) -> tuple[Config, ImageEncoder]:
    """The settings, and the encoder with its weights.

    Raises:
        ValueError: a wrong setting, or weights that are missing or do not fit.
    """
    # Imported here, as the loader workers import this file too and need none of it.
    from pipeline.config.parser import parse_config

    files = [text for file in arguments.config for text in ("--config", file)]
    if arguments.checkpoint:
        if files or settings:
            raise ValueError("--checkpoint: brings its own settings; leave --config and others out")
        from pipeline.generation.trained import load_trained
        from pipeline.model.captioner import Captioner

        trained = load_trained(arguments.checkpoint)
        assert isinstance(trained.captioner, Captioner)  # one checkpoint is no ensemble
        return trained.config, trained.captioner.encoder
    config = parse_config([*files, "--data.train", arguments.shards, *settings])
    if config.model.encoder.weights is None:
        raise ValueError(
            "model.encoder.weights: must name pretrained weights, since the backbone stays as it is"
        )
    if config.model.encoder.tune != "none":
        raise ValueError(
            f"model.encoder.tune: {config.model.encoder.tune}: a run cannot train the backbone on "
            "features; set it to `none` here and in training"
        )
    from pipeline.model.decoders import DECODERS
    from pipeline.model.encoders.image_encoder import ImageEncoder

    output = DECODERS[config.model.decoder.kind].output
    encoder = ImageEncoder(config.model.encoder, config.model.dim, output)
    return config, encoder.eval()


def _make_job(
    arguments: argparse.Namespace, config: Config, encoder: ImageEncoder, world: World
) -> FeatureJob:
    from pipeline.data.reader import ShardFolder
    from pipeline.evaluation.feature_job import FeatureJob
    from pipeline.evaluation.features import policy_of
    from pipeline.remote.location import locate_data_sets
    from shards.storage import location, make_folder

    needed = [(arguments.shards, 2 * world.local_world_size)]  # each process: this one, the next
    located = locate_data_sets(needed, arguments.cache_dir, arguments.cache_gb, "--cache")
    source = ShardFolder(*located[0])
    if source.features:
        raise ValueError(f"--shards: {arguments.shards}: holds features; give the images' shards")
    out = location(arguments.out)
    make_folder(out)
    policy = policy_of(encoder, config, source, arguments.dtype, arguments.views, arguments.flip)
    return FeatureJob(source, out, policy, arguments.batch_size, arguments.workers)


def _encode(job: FeatureJob, encoder: ImageEncoder, world: World, as_json: bool) -> None:
    import torch

    from pipeline.distributed.process_group import runs_on_cpu
    from pipeline.evaluation.feature_job import encode_data_set
    from shards.messages import counted

    device = torch.device("cpu" if runs_on_cpu() else f"cuda:{world.local_rank}")
    encoder.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    manifest = encode_data_set(job, encoder, world, device)
    if manifest is None:  # the process that finishes last says so
        return
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    if as_json:
        facts = {"images": manifest.num_samples, "bytes": num_bytes, "digest": manifest.digest}
        print(json.dumps(facts))
        return
    print(
        f"{job.out}: {job.policy.description}; {counted(manifest.num_samples, 'image')}, "
        f"{num_bytes / 1e6:,.1f} MB, digest {manifest.digest[:12]}"
    )


if __name__ == "__main__":
    sys.exit(main())
