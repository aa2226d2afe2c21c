"""The map of the Kafka client's errors."""

from __future__ import annotations

import inspect

import pytest
from kafka import TopicPartition
from kafka import errors as kafka_errors

from pipeline.errors import BrokerAway, ConfigurationError, OffsetsGone, TidewatchError, WorkerFenced
from pipeline.kafka import mapped

CLIENT_ERRORS = [
    error
    for _, error in inspect.getmembers(kafka_errors, inspect.isclass)
    if issubclass(error, kafka_errors.KafkaError)
]


@pytest.mark.parametrize("error", CLIENT_ERRORS, ids=lambda error: error.__name__)
def test_no_error_of_the_client_is_left_unmapped(error: type[Exception]) -> None:
    """Nothing above the adapters knows Kafka's errors, so an unmapped one would end the process without a reason."""
    lost = {TopicPartition("t", 3): None}
    exc = error(lost) if error in (kafka_errors.OffsetOutOfRangeError, kafka_errors.LogTruncationError) else error("x")
    ours = mapped(exc, "asking")
    assert isinstance(ours, TidewatchError)
    assert error.__name__ in str(ours)
    if getattr(error, "retriable", False):
        assert ours.retriable


@pytest.mark.parametrize(
    ("error", "fate"),
    [
        (kafka_errors.FencedInstanceIdError(), WorkerFenced),
        (kafka_errors.KafkaTimeoutError(), BrokerAway),
        (kafka_errors.TopicAuthorizationFailedError({"t"}), ConfigurationError),
        (kafka_errors.UnsupportedCodecError("lz4"), ConfigurationError),
        (ConnectionRefusedError(), BrokerAway),
        (ValueError("a setting"), ConfigurationError),
    ],
)
def test_each_error_meets_its_fate(error: Exception, fate: type[TidewatchError]) -> None:
    """Waiting for what only a person can mend would look like a quiet system."""
    assert type(mapped(error, "asking")) is fate


def test_positions_out_of_the_log_name_their_partitions() -> None:
    """The worker rebuilds exactly those partitions."""
    error = kafka_errors.OffsetOutOfRangeError({TopicPartition("t", 3): 17})
    ours = mapped(error, "poll")
    assert isinstance(ours, OffsetsGone)
    assert ours.partitions == (("t", 3),)
