"""Snapshots survive the way to the store and back, and damaged ones are refused."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DamagedSnapshot
from pipeline.state.base import HEADER, Snapshot
from pipeline.state.codec import FRAME, decode, decode_headers, decode_many, encode, encode_many

LAYOUT, VERSION = "0123456789abcdef", "abcdef012345"


def headers(count: int, seed: int = 0) -> npt.NDArray[np.void]:
    """Headers with another number in every field."""
    made = np.zeros(count, HEADER)
    for place, name in enumerate(HEADER.names or ()):
        made[name] = np.random.default_rng(seed + place).integers(-1, 2**62, count)
    return made


def rows(count: int, width: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Rows of ordinary numbers."""
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@given(count=st.integers(1, 20), width=st.integers(0, 70), seed=st.integers(0, 1000))
def test_many_snapshots_come_back_bit_for_bit(count: int, width: int, seed: int) -> None:
    """A restart must continue from exactly the numbers that were saved."""
    head, body = headers(count, seed), rows(count, width, seed)
    ((indices, found),) = decode_many(encode_many(LAYOUT, VERSION, head, body))
    assert indices.tolist() == list(range(count))
    assert (found.layout, found.model_version) == (LAYOUT, VERSION)
    assert found.headers.tobytes() == head.tobytes()
    assert found.rows.tobytes() == body.tobytes()


def test_special_numbers_survive() -> None:
    """Rows hold NaN for what was never seen, and infinities in extremes."""
    body = np.array([[np.nan, np.inf, -np.inf, -0.0, np.float32(1e-45)]], np.float32)
    assert decode(encode(Snapshot(LAYOUT, VERSION, headers(1)[0], body[0]))).rows.tobytes() == body.tobytes()


def test_one_encodes_like_many() -> None:
    """There is one format, whichever function wrote it."""
    head, body = headers(3), rows(3, 11)
    values = encode_many(LAYOUT, VERSION, head, body)
    assert [encode(Snapshot(LAYOUT, VERSION, head[i], body[i])) for i in range(3)] == values
    found = decode(values[1])
    assert (found.layout, found.model_version, found.header) == (LAYOUT, VERSION, head[1])


def test_layouts_and_versions_come_back_as_groups_in_order() -> None:
    """While versions change, one load brings rows of both."""
    old = encode_many("a", "1", headers(2), rows(2, 5))
    new = encode_many("b", "2", headers(3), rows(3, 7))
    mixed = [new[0], old[0], new[1], new[2], old[1]]
    groups = {found.layout: (indices.tolist(), found.rows.shape) for indices, found in decode_many(mixed)}
    assert groups == {"b": ([0, 2, 3], (3, 7)), "a": ([1, 4], (2, 5))}
    assert [value.tobytes() for value in decode_headers(mixed)] == [decode(value).header.tobytes() for value in mixed]


def test_nothing_decodes_to_nothing() -> None:
    """A load that found no rows is no special case."""
    assert list(decode_many([])) == []
    assert decode_headers([]).shape == (0,)


def test_decoded_rows_are_ones_own() -> None:
    """The engine folds in place: values kept by a store must not change with them."""
    value = encode_many(LAYOUT, VERSION, headers(1), rows(1, 4))[0]
    before = bytes(value)
    decode(value).rows[:] = 7
    assert value == before


@pytest.mark.parametrize("cut", [0, 3, FRAME.itemsize - 1, FRAME.itemsize, FRAME.itemsize + 5])
def test_a_value_cut_short_is_refused(cut: int) -> None:
    """Half a row is no row."""
    value = encode_many(LAYOUT, VERSION, headers(1), rows(1, 4))[0]
    with pytest.raises(DamagedSnapshot):
        decode(value[:cut])


@given(place=st.integers(0, FRAME.itemsize + 15), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(place: int, bit: int) -> None:
    """A changed number would be folded on for ever, without a sign."""
    value = bytearray(encode_many(LAYOUT, VERSION, headers(1), rows(1, 4))[0])
    value[place] ^= 1 << bit
    with pytest.raises(DamagedSnapshot):
        decode(bytes(value))
    with pytest.raises(DamagedSnapshot):
        decode_headers([bytes(value)])


@pytest.mark.parametrize(("offset", "text"), [(8, "format"), (10, "format"), (12, "length")])
def test_unknown_formats_and_wrong_lengths_are_refused_though_the_checksum_fits(offset: int, text: str) -> None:
    """A later release's value must not be read as one of ours."""
    value = bytearray(encode_many(LAYOUT, VERSION, headers(1), rows(1, 4))[0])
    value[offset] += 1
    value[4:8] = struct.pack("<I", crc32c(bytes(value[8:])))
    with pytest.raises(DamagedSnapshot, match=text):
        decode(bytes(value))


def test_one_damaged_value_stops_the_group_before_anything_is_yielded() -> None:
    """Nothing may be admitted to the device from a load that is in doubt."""
    values = encode_many(LAYOUT, VERSION, headers(2), rows(2, 4))
    with pytest.raises(ValueError):
        next(decode_many([values[0], values[1][:-1]]))


@pytest.mark.parametrize(
    ("layout", "version"), [("x" * 17, VERSION), (LAYOUT, "v" * 33), (LAYOUT, "ü"), ("a\0", VERSION)]
)
def test_names_that_do_not_fit_are_refused(layout: str, version: str) -> None:
    """A name cut off silently would name another version."""
    with pytest.raises(ValueError):
        encode_many(layout, version, headers(1), rows(1, 4))
