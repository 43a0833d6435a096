"""Write the word embeddings of a checkpoint for TensorBoard's projector, and draw a map of them.

python -m pipeline.words --checkpoint DIR --out DIR

The map places words with similar embeddings near each other (t-SNE). It needs scikit-learn:
pip install '.[words]'

Exit code: 0; 1 if the files could not be written; 2 for unusable input.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtime.errors import usage_errors
from shards.arguments import CommandParser

if TYPE_CHECKING:  # numpy and torch take seconds to import, and `--help` does not need them
    import numpy as np
    from tokenizers import Tokenizer

    from pipeline.observability.word_vectors import WordVectors

WEIGHT = "decoder.embed.weight"  # of the captioner's state


def main(prog: str = "python -m pipeline.words") -> int:
    """Command line. Returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends at once, without a stack trace
    with usage_errors("words"):
        arguments = _parser(prog).parse_args()
        _check(arguments)
        words = _read(arguments)
        arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        _write(words, arguments)
    except OSError as error:  # a full disk, or a folder that must not be written to
        print(f"words: {error}", file=sys.stderr)
        return 1
    return 0


def _parser(prog: str) -> CommandParser:
    parser = CommandParser(
        prog=prog,
        exit_on_error=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder to write: words.png, words.html, and the files of the projector, which "
        "`tensorboard --logdir OUT` opens",
    )
    parser.add_argument(
        "--shards",
        type=Path,
        help="folder of a data set with the checkpoint's tokenizer; counts the words of its "
        "captions (default: no counts; the words are ordered as in the vocabulary)",
    )
    parser.add_argument("--json", action="store_true", help="print the results as a JSON object")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Raises ValueError where the command cannot run."""
    for name in ("out", "shards"):
        path = getattr(arguments, name)
        if path and ":/" in str(path):  # a path shortens :// to this
            raise ValueError(f"--{name}: {path}: must be a folder on a file system, not a URL")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out: {arguments.out}: is a file; name a folder")
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError("the map needs scikit-learn; run: pip install '.[words]'")


def _read(arguments: argparse.Namespace) -> WordVectors:
    """Read the embeddings, and count the words if there is a data set.

    Raises:
        ValueError: the checkpoint or the data set cannot be used.
    """
    from pipeline.checkpoint.commit import TOKENIZER, check_checkpoint, load_weight
    from pipeline.observability.word_vectors import word_vectors
    from shards.tokenizer import load_tokenizer

    check_checkpoint(arguments.checkpoint)
    tokenizer = load_tokenizer(arguments.checkpoint / TOKENIZER)
    weight = load_weight(arguments.checkpoint, WEIGHT).float().numpy()
    counts = _count(arguments, tokenizer) if arguments.shards else None
    try:
        return word_vectors(tokenizer, weight, counts)
    except ValueError as error:
        raise ValueError(f"{arguments.checkpoint}: {error}") from None


def _count(arguments: argparse.Namespace, tokenizer: Tokenizer) -> np.ndarray:
    """How often each token occurs in the captions of the data set.

    Raises:
        ValueError: it was built with another tokenizer, or a sample is bad.
    """
    import numpy as np
    from tqdm import tqdm

    from pipeline.checkpoint.commit import TOKENIZER
    from pipeline.data.batch import BadSampleError
    from pipeline.data.reader import ShardFolder
    from shards.tokenizer import tokenizer_sha256

    shards = ShardFolder(arguments.shards)
    if shards.manifest.tokenizer_sha256 != tokenizer_sha256(arguments.checkpoint / TOKENIZER):
        raise ValueError(
            f"--shards: {arguments.shards}: built with another tokenizer than that of "
            f"{arguments.checkpoint}"
        )
    counts = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    try:
        for sample in tqdm(range(len(shards)), "counting words", unit=" images", leave=False):
            for tokens in shards.read_meta(sample)["tokens"]:
                np.add.at(counts, tokens, 1)
    except BadSampleError as error:
        raise ValueError(str(error)) from None
    return counts


def _write(words: WordVectors, arguments: argparse.Namespace) -> None:
    """Write all files, and print which. Raises OSError."""
    import io

    from tqdm import tqdm

    from pipeline.observability.word_map import draw_map, map_page
    from pipeline.observability.word_vectors import ITERATIONS, tsne, write_projector
    from shards.atomic import write_atomic
    from shards.messages import counted

    out: Path = arguments.out
    write_projector(out, words)
    with tqdm(total=ITERATIONS, desc="t-SNE", unit=" iterations", leave=False) as bar:

        def show(done: int) -> None:
            bar.update(done - bar.n)

        places = tsne(words.vectors, show)
    title = f"{counted(len(words), 'word')} of {arguments.checkpoint}"
    image, num_labels = draw_map(words, places, f"{title}, placed by t-SNE")
    png = io.BytesIO()
    image.save(png, "PNG")
    write_atomic(out / "words.png", png.getvalue())
    write_atomic(out / "words.html", map_page(words, places, title).encode())
    if arguments.json:
        dim = words.vectors.shape[1]
        paths = {"png": f"{out / 'words.png'}", "html": f"{out / 'words.html'}"}
        result = {"words": len(words), "dim": dim, "labels": num_labels, "logdir": str(out)}
        print(json.dumps({**result, **paths}))
        return
    print(f"{title}:")
    print(f"  {out / 'words.png'}: map with {counted(num_labels, 'label')}")
    print(f"  {out / 'words.html'}: the same map to search, in a browser")
    print(f"  projector: tensorboard --logdir {out}")


if __name__ == "__main__":
    sys.exit(main())
