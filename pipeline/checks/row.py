"""What a stream of a profile carries, and what it costs in Redis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from models.row import RowLayout
from pipeline.errors import ConfigurationError
from pipeline.profile import Profile
from pipeline.registry import base_weights
from pipeline.state.codec import FRAME
from pipeline.wording import counted, table

STREAM_ID_BYTES = 24
"""Length of a stream id that the estimate assumes."""

# A field of a Redis hash is a dictEntry of three pointers and its share of the bucket array, which holds between one
# and two buckets a field (redis/src/dict.c).
_ENTRY_BYTES = 24 + 12
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class RowCost:
    """Size of one stream.

    Attributes
    ----------
    numbers
        float32 of all its rows.
    value_bytes
        The saved value: header and numbers.
    redis_bytes
        Estimated memory of that value as a field of a hash.
    """

    numbers: int
    value_bytes: int
    redis_bytes: int


def layout_of(profile: Profile) -> RowLayout:
    """The row layout of a profile under the weights it starts from.

    Raises
    ------
    ConfigurationError
        The weights are not there, or do not fit the profile.
    """
    weights = base_weights(profile.builtin() or profile.predictor, profile.scope)
    try:
        return RowLayout(profile.fold(), weights.predictor)
    except ValueError as exc:
        raise ConfigurationError(f"predictor {profile.predictor!r} does not fit the profile: {exc}") from exc


def cost_of(layout: RowLayout) -> RowCost:
    """What one stream of this layout costs."""
    value = FRAME.itemsize + _FLOAT_BYTES * layout.numbers
    return RowCost(
        layout.numbers, value, _allocated(_string(value)) + _allocated(_string(STREAM_ID_BYTES)) + _ENTRY_BYTES
    )


def _string(length: int) -> int:
    """Bytes of a Redis string: a header that grows with the length, the text, a zero (redis/src/sds.h)."""
    header = 1 if length < 1 << 5 else 3 if length < 1 << 8 else 5 if length < 1 << 16 else 9
    return header + length + 1


def _allocated(size: int) -> int:
    """What the allocator gives for ``size``: classes four to a doubling, a multiple of 8 (jemalloc, size classes)."""
    spacing = max(8, 1 << ((size - 1).bit_length() - 3))
    return -(-size // spacing) * spacing


def describe_row(name: str, profile: Profile) -> str:
    """The row of a profile as a table, and what it costs full and light.

    Raises
    ------
    ConfigurationError
        As in :func:`layout_of`.
    """
    layout = layout_of(profile)
    rows = [
        (where, slice_name, str(offset), str(width), str(_FLOAT_BYTES * width), meaning)
        for where, slice_name, offset, width, meaning in layout.describe()
    ]
    parts = (
        [f"profile {name}: {_traits(profile)}", _shape(layout), ""],
        table(("row", "slice", "offset", "width", "bytes", "meaning"), rows, right=(2, 3, 4)),
        [""],
        table(("row", "numbers", "value bytes", "Redis, million streams"), list(_variants(profile)), right=(1, 2, 3)),
        [f"Offsets and widths count float32 numbers. Redis: estimated, for stream ids of {STREAM_ID_BYTES} bytes."],
    )
    return "\n".join(line for part in parts for line in part)


def _shape(layout: RowLayout) -> str:
    rows = "one feature row" if layout.features == 1 else f"{layout.features} feature rows"
    return (
        f"layout {layout.id}: {rows} of {layout.feature_width} and one entity row of {layout.entity_width}, "
        f"{layout.numbers} numbers a stream"
    )


def _traits(profile: Profile) -> str:
    features = len(profile.features)
    kind = "light" if profile.light else "full"
    return (
        f"{counted(features, 'feature')}, evidence {profile.fold().evidence}, "
        f"predictor {profile.builtin() or profile.predictor}, {kind} row"
    )


def _variants(profile: Profile) -> Iterator[tuple[str, str, str, str]]:
    """Cost of the full and of the light row of this profile; a variant that cannot be says why."""
    for light in (False, True):
        name = ("light" if light else "full") + (" (this profile)" if light == profile.light else "")
        try:
            variant = Profile.model_validate({**profile.model_dump(), "light": light})
            cost = cost_of(layout_of(variant))
        except ValidationError as exc:
            yield name, "-", "-", exc.errors()[0]["msg"].removeprefix("Value error, ")
        except ConfigurationError as exc:
            yield name, "-", "-", str(exc)
        else:
            yield name, f"{cost.numbers:,}", f"{cost.value_bytes:,}", gigabytes(cost.redis_bytes * 1_000_000)


def gigabytes(count: float) -> str:
    """Bytes as people read them, in powers of ten."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
