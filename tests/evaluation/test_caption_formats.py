"""Image ids of COCO's results."""

import pytest

from pipeline.evaluation.caption_formats import image_id


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("photos/000000000139.jpg", 139),
        ("COCO_val2014_000000000139.jpg", 139),
        ("COCO_val2014_139.jpg", "COCO_val2014_139.jpg"),
        ("a/IMG_0139.jpg", "a/IMG_0139.jpg"),
        (f"{10**18}.jpg", f"{10**18}.jpg"),  # does not fit 64 bits
        ("\u0661\u0662.jpg", "\u0661\u0662.jpg"),  # Arabic digits
    ],
)
def test_the_image_id_is_a_number_in_the_name_or_the_path(path: str, expected: object) -> None:
    assert image_id(path) == expected
