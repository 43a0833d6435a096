"""The words of a vocabulary with their embeddings: order, neighbours, t-SNE, projector files.

V words, D width of the embeddings
"""

import contextlib
import io
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models

from shards.atomic import write_atomic
from shards.tokenizer import SPECIAL_TOKENS, UNK, readable

JOINERS = "\u200c\u200d"  # they change the letters beside them, so they stay

PERPLEXITY = 30.0  # of t-SNE: about the number of neighbours that a word has
ITERATIONS = 1000
SEED = 0

NEIGHBOUR_ROWS = 1024  # words that are compared with all words at a time

# The files of TensorBoard's projector. It finds the first by its name.
PROJECTOR_CONFIG = "projector_config.pbtxt"
VECTORS_FILE = "vectors.tsv"
WORDS_FILE = "words.tsv"


@dataclass(frozen=True)
class WordVectors:
    """Words with their embeddings, the commonest first."""

    words: list[str]  # V, as they are shown
    vectors: np.ndarray  # (V, D) float32
    counts: np.ndarray | None  # (V,) int64: how often each occurs; None if it is not known

    def __len__(self) -> int:
        return len(self.words)


def word_vectors(
    tokenizer: Tokenizer, weight: np.ndarray, counts: np.ndarray | None = None
) -> WordVectors:
    """The words of a vocabulary, without the entries that no caption has (PAD, BOS, EOS).

    The order is that of `counts`. Without counts it is that of the vocabulary: word-level
    vocabularies are ordered by falling count, and BPE pieces in the order in which they were
    joined. Single bytes come last, as they were there before any was joined.

    Args:
        weight: (number of entries, D) float, the embeddings by token id.
        counts: (number of entries,) int, how often each token occurs.
    Raises:
        ValueError: the embeddings are of another vocabulary, or are not finite.
    """
    if len(weight) != tokenizer.get_vocab_size():
        raise ValueError(
            f"the model has embeddings of {len(weight):,} tokens, and the tokenizer has "
            f"{tokenizer.get_vocab_size():,}"
        )
    if not np.isfinite(weight).all():
        raise ValueError("embeddings are not finite: the training diverged; use a checkpoint of "
                         "an earlier step")  # fmt: skip
    bpe = isinstance(tokenizer.model, models.BPE)  # it never uses UNK
    tokens = range(len(SPECIAL_TOKENS) if bpe else UNK, len(weight))
    if counts is not None:
        order = sorted(tokens, key=lambda token: (-counts[token], token))
    else:
        order = sorted(
            tokens, key=lambda token: bpe and len(str(tokenizer.id_to_token(token))) == 1
        )
    return WordVectors(
        [_shown(readable(tokenizer, token)) for token in order],
        weight[order].astype(np.float32),
        None if counts is None else counts[order],
    )


def _shown(word: str) -> str:
    """The word with its invisible characters as escapes, such as `\\n`."""
    return "".join(
        character
        if character in JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp")
        else character.encode("unicode_escape").decode()
        for character in word
    )


def nearest(vectors: np.ndarray, num_nearest: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest neighbours of each word by the cosine of their embeddings, nearest first.

    Args:
        vectors: (V, D) float32.
        num_nearest: K; fewer are found in a smaller vocabulary.
    Returns:
        (V, K) int64, the numbers of the words; (V, K) float32, their cosines.
    """
    unit = _unit(vectors)
    num_nearest = min(num_nearest, len(unit) - 1)
    found, cosines = [], []
    for start in range(0, len(unit), NEIGHBOUR_ROWS):
        scores = unit[start : start + NEIGHBOUR_ROWS] @ unit.T
        rows = np.arange(len(scores))
        scores[rows, start + rows] = -np.inf  # no word is its own neighbour
        order = np.argsort(-scores, axis=1, kind="stable")[:, :num_nearest]
        found.append(order)
        cosines.append(np.take_along_axis(scores, order, axis=1))
    return np.concatenate(found), np.concatenate(cosines)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


def tsne(vectors: np.ndarray, on_iteration: Callable[[int], None]) -> np.ndarray:
    """Places on a plane where words with similar embeddings lie together, always the same ones.

    t-SNE of the embeddings at length 1, where the squared distance is 2 minus twice the cosine.

    Args:
        vectors: (V, D) float32; V must be 2 or more.
        on_iteration: receives the number of iterations done, up to `ITERATIONS`.
    Returns:
        (V, 2) float32, from 0 to 1; the longer side of the map is 1.
    Source: van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 9, 2008.
    """
    from sklearn.manifold import TSNE  # of the `words` extra
    from threadpoolctl import threadpool_limits

    method = TSNE(
        perplexity=min(PERPLEXITY, (len(vectors) - 1) / 3),
        init="pca" if min(vectors.shape) >= 2 else "random",
        max_iter=ITERATIONS,
        random_state=SEED,
        verbose=2,
    )
    # Threads add up their parts in the order in which they end, so rounding would differ.
    with threadpool_limits(1), contextlib.redirect_stdout(_IterationReader(on_iteration)):
        places = method.fit_transform(_unit(vectors))
    on_iteration(ITERATIONS)  # it ends earlier once nothing moves any more
    low, high = places.min(axis=0), places.max(axis=0)
    centred = (places - (low + high) / 2) / max(float((high - low).max()), 1e-12)
    return np.asarray(centred + 0.5, dtype=np.float32)


class _IterationReader(io.TextIOBase):
    """Stands in for stdout while scikit-learn prints its iterations; it has no callback."""

    def __init__(self, on_iteration: Callable[[int], None]) -> None:
        self._on_iteration = on_iteration

    def write(self, text: str) -> int:
        if found := re.search(r"Iteration (\d+)", text):
            self._on_iteration(int(found[1]))
        return len(text)


def write_projector(folder: Path, words: WordVectors) -> None:
    """Write the files that TensorBoard's projector opens.

    They are the text files of `SummaryWriter.add_embedding`. Here the same input gives the same
    bytes, and no event file is needed.

    Raises:
        OSError: a file cannot be written.
    """
    columns = ["word", "rank"] if words.counts is None else ["word", "rank", "count"]
    lines = ["\t".join(columns)]
    for number, word in enumerate(words.words):
        count = [] if words.counts is None else [str(words.counts[number])]
        lines.append("\t".join([word, str(number + 1), *count]))
    write_atomic(folder / WORDS_FILE, ("\n".join(lines) + "\n").encode())
    numbers = io.BytesIO()
    np.savetxt(numbers, words.vectors, fmt="%.9g", delimiter="\t")
    write_atomic(folder / VECTORS_FILE, numbers.getvalue())
    config = (
        "embeddings {\n"
        '  tensor_name: "words"\n'
        f'  tensor_path: "{VECTORS_FILE}"\n'
        f'  metadata_path: "{WORDS_FILE}"\n'
        "}\n"
    )
    write_atomic(folder / PROJECTOR_CONFIG, config.encode())
