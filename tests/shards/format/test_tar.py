"""Tars: headers, and offsets of the members."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.format.tar import add_to_tar, open_tar_for_writing, ustar_header


@given(st.text(min_size=1, max_size=60), st.integers(0, 8**11 - 1))
def test_a_tar_header_is_that_of_tarfile(name: str, size: int) -> None:
    name = name.encode(errors="replace").decode().replace("\0", "0")
    info = tarfile.TarInfo(name)
    info.size = size
    try:
        expected = info.tobuf(tarfile.USTAR_FORMAT)
    except ValueError:  # longer than ustar can hold
        with pytest.raises(ValueError, match="name is too long"):
            ustar_header(name, size)
    else:
        assert ustar_header(name, size) == expected


@given(st.lists(st.binary(max_size=2000), max_size=6))
def test_offsets_are_where_the_data_lies(members: list[bytes]) -> None:
    file = io.BytesIO()
    with open_tar_for_writing(file) as tar:
        offsets = [add_to_tar(tar, f"{n}.bin", data) for n, data in enumerate(members)]
    raw = file.getvalue()
    for data, offset in zip(members, offsets, strict=True):
        assert raw[offset : offset + len(data)] == data
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        assert [tar.extractfile(m).read() for m in tar] == members  # type: ignore[union-attr]
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in tar} <= {(0, 0, 0, 0o644)}
