"""What to replay: recordings and topics by name, the streams chosen from them, and the profile that scores each.

A *series* input (CSV, JSON Lines, Parquet, folders) gives streams; a *raw* input (record files, ``kafka:topic``) gives
the very records of a topic.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import count, islice
from pathlib import Path

from pydantic import ValidationError

from pipeline.errors import ConfigurationError
from pipeline.profile import Profile
from pipeline.records import Partition, Record
from pipeline.settings import Limits, Settings
from pipeline.sources.record_file import is_record_file, read_records
from pipeline.sources.recording import RecordedStream, open_recording
from pipeline.sources.tables import IS_CODE
from pipeline.topics.base import Place, by_partition
from pipeline.topics.kafka import Cluster
from pipeline.topics.places import parse_place
from pipeline.wire import decode_many
from pipeline.wording import counted

logger = logging.getLogger(__name__)

KAFKA = "kafka:"
TOPIC_OF_DERIVED = "recording"

MANY_LATE = 0.05
"""Share of rows that are late, from which on a recording looks like several streams in one."""

Records = Iterator[tuple[Partition, Record]]


@dataclass(frozen=True, slots=True)
class TopicRange:
    """Some records of a topic; without an end, all that are there when reading begins."""

    topic: str
    begin: Place | None
    end: Place | None


def parse_topic_range(text: str) -> TopicRange:
    """``topic``, or ``topic@from..to`` with offsets or times, either of which may be left out.

    Raises
    ------
    ConfigurationError
        It is not of that form.
    """
    topic, at, places = text.partition("@")
    begin, dots, end = places.partition("..")
    if not topic or (at and not dots):
        raise ConfigurationError(f"{KAFKA}{text}: write it as {KAFKA}topic or {KAFKA}topic@from..to")
    return TopicRange(topic, parse_place(begin) if begin.strip() else None, parse_place(end) if end.strip() else None)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which part of the inputs is replayed: streams by glob pattern, times with ``start_ms <= time < end_ms``."""

    patterns: tuple[str, ...] = ()
    start_ms: int | None = None
    end_ms: int | None = None

    def has_stream(self, name: str) -> bool:
        """Whether a stream is wanted; a pattern without ``/`` also names a whole data set."""
        return not self.patterns or any(
            fnmatchcase(name, pattern) or name.startswith(f"{pattern}/") for pattern in self.patterns
        )

    def has_time(self, time_ms: int) -> bool:
        """Whether a time is wanted."""
        return (self.start_ms is None or time_ms >= self.start_ms) and (self.end_ms is None or time_ms < self.end_ms)

    def part_of(self, stream: RecordedStream) -> RecordedStream:
        """The wanted times of a stream."""
        if self.start_ms is None and self.end_ms is None:
            return stream
        kept = stream.times_ms >= (0 if self.start_ms is None else self.start_ms)
        if self.end_ms is not None:
            kept &= stream.times_ms < self.end_ms
        labels = None if stream.labels is None else stream.labels[kept]
        return replace(stream, times_ms=stream.times_ms[kept], values=stream.values[kept], labels=labels)


# --- series -----------------------------------------------------------------------------------------------------------


def load_streams(paths: Sequence[Path], chosen: Chosen) -> list[RecordedStream]:
    """The chosen streams of recordings, in their order, without empty ones; warns of what is doubtful about them.

    Raises
    ------
    ConfigurationError
        A recording cannot be read, two streams have one name, or nothing is left.
    """
    streams: dict[str, RecordedStream] = {}
    offered: list[str] = []
    for path in paths:
        recording = open_recording(path)
        offered += recording.names
        for name in recording.names:
            if not chosen.has_stream(name):
                continue
            if name in streams:
                raise ConfigurationError(f"the stream {name!r} is in two recordings")
            streams[name] = chosen.part_of(recording[name])
    for text in doubts_of(list(streams.values())):
        logger.warning(text)
    if not streams:
        some = ", ".join((*offered[:5], "…") if len(offered) > 5 else offered)
        raise ConfigurationError(f"no stream matches {', '.join(chosen.patterns)}; there are {len(offered)}: {some}")
    filled = [stream for stream in streams.values() if len(stream) and stream.features]
    if not filled:
        first = next(iter(streams.values()))
        reasons = "" if first.features else _left_out(first, first.dropped)
        raise ConfigurationError(
            f"no observation is left: check --start, --end, and that there are columns of numbers{reasons}"
        )
    return filled


def doubts_of(streams: Sequence[RecordedStream]) -> list[str]:
    """What makes it doubtful that recordings were read as they were meant: columns left out, rows that go back in time.

    Each column once, with the reason of its first stream. What a manifest calls a code is left out as it was meant.
    """
    left_out = [(stream, *item) for stream in streams for item in stream.left_out.items() if item[1] != IS_CODE]
    first = {name: (stream, reason) for stream, name, reason in reversed(left_out)}
    times = Counter(name for _, name, _ in left_out)
    said = []
    for name, (stream, reason) in reversed(first.items()):
        others = f", and of {times[name] - 1} other streams" if times[name] > 1 else ""
        said.append(f"column {name} of {stream.name} is left out{others}: {reason}")
    mixed = [(stream, late) for stream in streams if (late := _late(stream)) > MANY_LATE * len(stream)]
    if mixed:
        (stream, late), others = mixed[0], f" (and many of {len(mixed) - 1} other streams)" if len(mixed) > 1 else ""
        said.append(
            f"{late} of {len(stream)} rows of {stream.name}{others} are not later than the rows before them, and count "
            "as late; if these are several streams, name the column that tells them apart stream_id"
        )
    return said


def _late(stream: RecordedStream) -> int:
    return len(stream) - len(stream.rows_in_time)


@dataclass(frozen=True, slots=True)
class SeriesGroup:
    """Streams that one profile scores, and what is to be said about the choice."""

    name: str
    profile: Profile
    streams: list[RecordedStream]
    notice: str | None = None


def group_by_profile(
    streams: Sequence[RecordedStream], profiles: dict[str, Profile], wanted: str | None = None
) -> list[SeriesGroup]:
    """Each stream with the profile that fits its features, interval and clock, or with one derived from it.

    A derived profile takes everything else (predictor, budget, evidence) from the profile whose features fit, where
    there is one.

    Parameters
    ----------
    profiles
        Those of the settings.
    wanted
        Take this one for all streams, as it is.

    Raises
    ------
    ConfigurationError
        There is no profile ``wanted``, or it has other features than a stream.
    """
    if wanted is not None:
        return [SeriesGroup(wanted, _named_profile(profiles, wanted, streams), list(streams))]
    by_kind: dict[tuple[tuple[str, ...], float | None, bool], list[RecordedStream]] = {}
    for stream in streams:
        by_kind.setdefault((stream.features, stream.interval_s, stream.clock), []).append(stream)
    groups: list[SeriesGroup] = []
    for alike in by_kind.values():
        fitting = [name for name, profile in profiles.items() if profile.features == alike[0].features]
        exact = [name for name in fitting if _fits(profiles[name], alike[0])]
        if exact:
            groups.append(SeriesGroup(exact[0], profiles[exact[0]], alike))
            continue
        base = fitting[0] if fitting else None
        taken = {*profiles, *(group.name for group in groups)}
        groups.append(_derived(alike, None if base is None else (base, profiles[base]), taken))
    return groups


def _named_profile(profiles: dict[str, Profile], name: str, streams: Sequence[RecordedStream]) -> Profile:
    profile = named(profiles, name)
    for stream in streams:
        if stream.features != profile.features:
            raise ConfigurationError(
                f"profile {name} has the features {', '.join(profile.features)}; "
                f"stream {stream.name!r} has {', '.join(stream.features)}{_left_out(stream, profile.features)}"
            )
    return profile


def _left_out(stream: RecordedStream, names: Iterable[str]) -> str:
    """What is said of those columns that the recording has, but not as numbers."""
    reasons = ((name, stream.left_out[name]) for name in names if name in stream.left_out)
    return "".join(f"; column {name} was left out: {reason}" for name, reason in reasons)


def named(profiles: dict[str, Profile], name: str) -> Profile:
    """A profile of the settings by its name.

    Raises
    ------
    ConfigurationError
        There is none.
    """
    if name not in profiles:
        raise ConfigurationError(f"there is no profile {name!r}; there are {', '.join(profiles)}")
    return profiles[name]


def _fits(profile: Profile, stream: RecordedStream) -> bool:
    return profile.interval_s == stream.interval_s and profile.clock == stream.clock


def _derived(streams: list[RecordedStream], base: tuple[str, Profile] | None, taken: set[str]) -> SeriesGroup:
    first = streams[0]
    interval_s = first.interval_s
    found: dict[str, object] = {
        "topics": (TOPIC_OF_DERIVED,),
        "features": first.features,
        "interval_s": interval_s,
        "clock": first.clock,
    }
    if interval_s is not None and interval_s * 20 > Profile.model_fields["idle_reset_s"].default:
        found["idle_reset_s"] = interval_s * 20
    if base is not None:
        kept = base[1].model_dump(exclude={"topics", "features", "interval_s", "clock"}, exclude_unset=True)
        found = kept | found
    try:
        profile = Profile.model_validate(found)
    except ValidationError as exc:
        raise ConfigurationError(f"no profile can be made for {first.name!r}: {exc.errors()[0]['msg']}") from exc
    return SeriesGroup(_new_name(streams, interval_s, taken), profile, streams, _notice(streams, profile, base))


def _new_name(streams: list[RecordedStream], interval_s: float | None, taken: set[str]) -> str:
    sets = {stream.name.partition("/")[0] for stream in streams if "/" in stream.name}
    stem = sets.pop() if len(sets) == 1 else "recorded"
    stem = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in stem)
    if interval_s is not None:
        stem += f"-{interval_s:g}s"
    return next(name for number in count(1) if (name := stem if number == 1 else f"{stem}-{number}") not in taken)


def _notice(streams: list[RecordedStream], profile: Profile, base: tuple[str, Profile] | None) -> str:
    what = f"{profile.interval_s:g} s apart" if profile.interval_s is not None else "at no fixed interval"
    names = ", ".join(profile.features[:4]) + (", …" if len(profile.features) > 4 else "")
    evidence = profile.fold().evidence
    text = (
        f"{counted(len(streams), 'stream')} without a profile that fits: scored by one derived from them "
        f"(features {names}; {what}; evidence {evidence}; alarm budget {profile.alarm_budget})"
    )
    return text if base is None else f"{text}, with all else from {base[0]!r}; --profile {base[0]} takes that as it is"


# --- raw records ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RawInput:
    """Records of a topic as they were.

    Attributes
    ----------
    topics, partitions
        Where they came from, and one more than the highest number of a partition.
    total
        How many there are (of a range of a topic: at most), for progress.
    read
        Begins to read them.
    begins
        First offset of each partition, where a topic is read.
    """

    name: str
    topics: tuple[str, ...]
    partitions: int
    total: int
    read: Callable[[], Records] = field(repr=False)
    begins: Mapping[Partition, int] = field(default_factory=dict)


def is_raw(name: str) -> bool:
    """Whether an input, as the command line names it, gives raw records: a range of a topic, or a record file."""
    return name.startswith(KAFKA) or is_record_file(Path(name))


def open_raw(name: str, cluster: Cluster) -> RawInput | None:
    """The raw records that an input of this name gives; ``None`` where it gives series.

    Raises
    ------
    ConfigurationError
        There is no such topic or record file, or it holds no record that is asked for.
    BrokerAway
        Kafka does not answer.
    """
    if name.startswith(KAFKA):
        return open_topic(cluster, parse_topic_range(name.removeprefix(KAFKA)))
    return open_record_file(Path(name)) if is_record_file(Path(name)) else None


def open_record_file(path: Path) -> RawInput:
    """The records of a file that ``tidewatch record`` wrote.

    Raises
    ------
    ConfigurationError
        It is none, or empty.
    """
    places = [partition for partition, _ in read_records(path)]
    if not places:
        raise ConfigurationError(f"{path}: holds no record")
    topics = tuple(dict.fromkeys(place.topic for place in places))
    highest = max(place.partition for place in places)
    return RawInput(str(path), topics, highest + 1, len(places), lambda: read_records(path))


def open_topic(cluster: Cluster, wanted: TopicRange) -> RawInput:
    """The records that are in a range of a topic now.

    Raises
    ------
    ConfigurationError
        There is no such topic, or nothing in the range.
    BrokerAway
        Kafka does not answer.
    """
    with cluster.reader(wanted.topic) as reader:
        begin = reader.beginning() if wanted.begin is None else reader.at(wanted.begin)
        end = reader.end() if wanted.end is None else reader.at(wanted.end)
        partitions = len(reader.partitions)
    total = sum(max(0, end[partition] - begin[partition]) for partition in begin)
    if not total:
        raise ConfigurationError(f"topic {wanted.topic}: no record in the range asked for")

    def read() -> Records:
        with cluster.reader(wanted.topic) as again:
            for records in again.read(begin, end):
                yield from records

    return RawInput(f"{KAFKA}{wanted.topic}", (wanted.topic,), partitions, total, read, begin)


def profile_of_raw(raw: RawInput, settings: Settings, wanted: str | None = None) -> str:
    """Name of the profile that understands these records: the one named, or the one their topic is bound to.

    Raises
    ------
    ConfigurationError
        There is none, or their topics have several.
    """
    if wanted is not None:
        named(settings.profiles, wanted)
        return wanted
    bound = settings.profile_names()
    names = {bound.get(topic) for topic in raw.topics}
    if len(names) > 1:
        raise ConfigurationError(f"{raw.name}: its topics belong to several profiles; name one with --profile")
    name = names.pop()
    if name is None:
        raise ConfigurationError(f"{raw.name}: no profile is bound to {', '.join(raw.topics)}; name one with --profile")
    return name


def choose_records(records: Records, chosen: Chosen, profile: Profile, limits: Limits) -> Records:
    """Records of wanted streams, with wanted Kafka timestamps, as they are."""
    for partition, record in records:
        if not chosen.has_time(record.timestamp):
            continue
        if not chosen.patterns or any(map(chosen.has_stream, stream_ids(partition, record, profile, limits))):
            yield partition, record


def stream_ids(partition: Partition, record: Record, profile: Profile, limits: Limits) -> list[str]:
    """The stream a record belongs to; none where it has no key and cannot be decoded."""
    if record.key is not None:
        return [record.key.decode("utf-8", "replace")]
    windows, _ = decode_many([record], partition, profile, limits)
    return windows.stream_ids


def in_batches(records: Records, size: int) -> Iterator[dict[Partition, list[Record]]]:
    """Some thousand records at a time, by partition."""
    while batch := list(islice(records, size)):
        yield by_partition(batch)


# --- history ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class History:
    """What new streams are warmed up with: each one's past, handed out once, cut off where its replay begins."""

    streams: dict[str, RecordedStream] = field(default_factory=dict)

    @classmethod
    def of(cls, streams: Iterable[RecordedStream]) -> History:
        """The history of these streams."""
        return cls({stream.name: stream for stream in streams})

    def before(self, name: str, time_ms: int, features: tuple[str, ...]) -> RecordedStream | None:
        """The past of a stream whose first replayed observation is at ``time_ms``; ``None`` the second time.

        Raises
        ------
        ConfigurationError
            It has other features.
        """
        stream = self.streams.pop(name, None)
        if stream is None:
            return None
        if stream.features != features:
            raise ConfigurationError(f"the history of {name!r} has other features: {', '.join(stream.features)}")
        past = Chosen(end_ms=time_ms).part_of(stream)
        return past if len(past) else None
