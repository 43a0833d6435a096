"""Keys and image ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.format.names import image_id_of, key_of


@given(st.integers(0, 10**15))
def test_a_key_gives_its_image_id_back(image_id: int) -> None:
    assert image_id_of(key_of(image_id)) == image_id


@given(st.text("0123456789abcdefghijklmnopqrstuvwxyz_-", min_size=1))
def test_a_string_stays_a_string_unless_it_is_a_numbers_key(image_id: str) -> None:
    is_number = image_id.isdigit() and f"{int(image_id):012d}" == image_id
    assert image_id_of(key_of(image_id)) == (int(image_id) if is_number else image_id)


@pytest.mark.parametrize("image_id", ["123", "0007", "0000000000123", "000000000139"])
def test_ids_of_digits(image_id: str) -> None:
    assert image_id_of(image_id) == (139 if image_id == "000000000139" else image_id)


@pytest.mark.parametrize("image_id", [-1, True, 1.5, "", "A b", "../x", None])
def test_an_impossible_image_id_is_refused(image_id: object) -> None:
    with pytest.raises(ValueError, match="image id"):
        key_of(image_id)  # type: ignore[arg-type]
