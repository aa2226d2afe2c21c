"""Losses as TensorBoard events. Needs the package tensorboard, the extra ``training``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from models.fitting import Epoch
from pipeline.errors import ConfigurationError
from pipeline.output_files import make_writable

Teller = Callable[[int, Epoch], None]


@contextmanager
def tensorboard_events(folder: Path | None, wall_s: Callable[[], float]) -> Iterator[Teller]:
    """What to call with each epoch's number, from 1, and its losses; does nothing without a folder.

    Raises
    ------
    ConfigurationError
        The package is not installed, or the folder cannot be written.
    """
    if folder is None:
        yield lambda number, epoch: None
        return
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as exc:
        raise ConfigurationError("--tensorboard needs tensorboard: pip install 'tidewatch[training]'") from exc
    make_writable(folder)
    writer = EventFileWriter(str(folder))

    def tell(number: int, epoch: Epoch) -> None:
        numbers = {
            "loss/train": epoch.train_loss,
            "loss/validation": epoch.validation_loss,
            "learning_rate": epoch.rate,
        }
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        writer.add_event(Event(wall_time=wall_s(), step=number, summary=Summary(value=values)))

    try:
        yield tell
    finally:
        writer.close()
