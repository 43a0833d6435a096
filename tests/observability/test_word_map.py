"""The map of words: neighbours, places, and labels that do not cover each other."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.observability.text import line_width
from pipeline.observability.word_map import SIDE, TITLE_HEIGHT, draw_map, place_labels
from pipeline.observability.word_vectors import WordVectors, nearest, tsne


def test_words_of_one_group_lie_together() -> None:
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), 25)
    vectors = draw.normal(size=(4, 16))[groups] + 0.1 * draw.normal(size=(100, 16))
    lengths = draw.uniform(0.1, 10, size=(100, 1))  # the cosine does not see them
    iterations: list[int] = []
    places = tsne((vectors * lengths).astype(np.float32), iterations.append)
    distances = np.linalg.norm(places[:, None] - places, axis=2)
    nearest_places = np.argsort(distances, axis=1)[:, 1:11]
    assert (groups[nearest_places] == groups[:, None]).all()
    assert iterations == sorted(iterations)
    assert len(iterations) > 5
    assert iterations[-1] == 1000
    assert np.ptp(places, axis=0).max() == pytest.approx(1)


@pytest.mark.parametrize("shape", [(2, 5), (3, 1), (5, 3)])
def test_small_vocabularies_have_a_map(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    vectors[0] = 0  # has no direction
    places = tsne(vectors, lambda done: None)
    assert np.isfinite(places).all()
    words = [f"w{number}" for number in range(len(places))]
    image, num_labels = draw_map(WordVectors(words, vectors, None), places, "a title")
    assert image.size == (SIDE, SIDE)
    assert num_labels >= 1


def test_neighbours_are_those_of_a_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.observability.word_vectors.NEIGHBOUR_ROWS", 7)
    vectors = np.random.default_rng(1).normal(size=(30, 5)).astype(np.float32)
    found, cosines = nearest(vectors, 4)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for word in range(30):
        table = sorted(
            ((float(unit[word] @ unit[other]), other) for other in range(30) if other != word),
            reverse=True,
        )[:4]
        assert found[word].tolist() == [other for _, other in table]
        np.testing.assert_allclose(cosines[word], [cosine for cosine, _ in table], atol=1e-6)


@given(
    dots=st.lists(
        st.tuples(st.floats(10, SIDE - 10), st.floats(TITLE_HEIGHT + 5, SIDE - 10)),
        min_size=1, max_size=60,
    ),
    words=st.lists(st.text(max_size=40), min_size=60, max_size=60),
)  # fmt: skip
def test_labels_cover_neither_each_other_nor_labelled_dots(
    dots: list[tuple[float, float]], words: list[str]
) -> None:
    labels = place_labels(words[: len(dots)], np.array(dots))
    boxes = []
    for label in labels:
        top, right = label.baseline - label.style.size, label.left + line_width(*label[1:3])
        boxes.append((label.left, top, right, label.baseline + 0.2 * label.style.size))
        assert boxes[-1][0] >= 0
        assert boxes[-1][2] <= SIDE
    for one, other in combinations(boxes, 2):
        apart_x = one[2] <= other[0] or other[2] <= one[0]
        assert apart_x or one[3] <= other[1] + 1 or other[3] <= one[1] + 1
    for x, y in (dots[label.number] for label in labels):
        assert not any(left < x < right and top < y < low for left, top, right, low in boxes)


def test_the_commonest_words_are_labelled_first() -> None:
    dots = np.full((500, 2), 800.0) + np.random.default_rng(0).normal(size=(500, 2))
    labels = place_labels([f"word{number}" for number in range(500)], dots)
    assert labels[0].number == 0
    assert len(labels) < 20
    spread = np.random.default_rng(0).uniform(100, 1500, size=(50, 2))
    labels = place_labels([f"w{number}" for number in range(50)], spread)
    sizes = [label.style.size for label in labels]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1
