"""The state store in a dict: the promises of the Redis store, for tests and for replays that leave no trace."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import StaleToken, StateLost
from pipeline.state.base import Load, StateKey, Taken, Token


@dataclass(slots=True)
class _State:
    token: Token
    seq: int
    watermark: int | None = None
    layout: str = ""
    rows: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dump:
    """What a store held at one moment; made by :meth:`MemoryStateStore.dump`."""

    states: Mapping[StateKey, _State]


class MemoryStateStore:
    """:class:`pipeline.state.base.StateStore` in this process. Safe to call from several threads.

    A server's accidents can be had too: :meth:`dump` and :meth:`restore` (a server that comes back with an older
    dump) and :meth:`wipe` (one that comes back empty).
    """

    max_save_rows = 1000
    max_save_bytes = 1 << 20

    def __init__(self) -> None:
        self._states: dict[StateKey, _State] = {}
        self._lock = threading.Lock()

    def check(self) -> None:
        """Nothing to refuse: a dict drops no keys."""

    def take(self, key: StateKey, token: Token) -> Taken:
        """Become the only writer; see the protocol."""
        with self._lock:
            state = self._states.get(key)
            if state is None:
                state = self._states[key] = _State(token, 0)
            elif state.token.generation > token.generation:
                raise StaleToken(f"STALE for {key}", key.partition)
            state.token = token
            state.seq += 1
            return Taken(state.watermark, state.seq)

    def load_many(self, loads: Sequence[Load]) -> list[dict[str, bytes]]:
        """Saved values of the named streams; see the protocol."""
        with self._lock:
            return [self._load(load) for load in loads]

    def save(
        self,
        key: StateKey,
        token: Token,
        seq: int,
        rows: Mapping[str, bytes],
        deletions: Iterable[str],
        watermark: int | None,
        layout: str = "",
    ) -> int:
        """Write rows, deletions and the watermark as the successor of ``seq``; see the protocol."""
        if len(rows) > self.max_save_rows:
            raise ValueError(f"{len(rows)} rows in one save of {key.partition}, at most {self.max_save_rows}")
        with self._lock:
            state = self._owned(key, token)
            if state.seq == seq + 1:
                return state.seq
            if state.seq != seq:
                raise StateLost(f"LOST for {key}", key.partition)
            state.seq += 1
            if watermark is not None:
                state.watermark = watermark
            if layout:
                state.layout = layout
            state.rows.update(rows)
            for stream_id in deletions:
                state.rows.pop(stream_id, None)
            return state.seq

    def scan(self, key: StateKey, cursor: int, count: int) -> tuple[int, dict[str, bytes]]:
        """A slice of all saved streams; see the protocol. Here the cursor is a place in the order of ids."""
        with self._lock:
            state = self._states.get(key)
            ids = sorted(state.rows) if state else []
            following = cursor + count if cursor + count < len(ids) else 0
            return following, {stream_id: state.rows[stream_id] for stream_id in ids[cursor : cursor + count] if state}

    def peek(self, key: StateKey, stream_ids: Sequence[str]) -> dict[str, bytes]:
        """Saved values of some streams; see the protocol."""
        with self._lock:
            rows = self._states[key].rows if key in self._states else {}
            return {stream_id: rows[stream_id] for stream_id in stream_ids if stream_id in rows}

    def keys(self, group: str) -> list[StateKey]:
        """All partition states of a group; see the protocol."""
        with self._lock:
            return sorted(key for key in self._states if key.group == group)

    def close(self) -> None:
        """Nothing to close."""

    def dump(self) -> Dump:
        """A copy of everything held now."""
        with self._lock:
            return Dump(copy.deepcopy(self._states))

    def restore(self, dump: Dump) -> None:
        """Go back to ``dump``, forgetting every write since. The dump can be used again."""
        with self._lock:
            self._states = copy.deepcopy(dict(dump.states))

    def wipe(self) -> None:
        """Forget everything."""
        with self._lock:
            self._states.clear()

    def _load(self, load: Load) -> dict[str, bytes]:
        state = self._owned(load.key, load.token)
        if state.seq < load.acknowledged_seq:
            raise StateLost(f"LOST for {load.key}", load.key.partition)
        return {stream_id: state.rows[stream_id] for stream_id in load.stream_ids if stream_id in state.rows}

    def _owned(self, key: StateKey, token: Token) -> _State:
        state = self._states.get(key)
        if state is None:
            raise StateLost(f"LOST for {key}", key.partition)
        if state.token != token:
            newer = state.token.generation > token.generation
            raise (
                StaleToken(f"STALE for {key}", key.partition) if newer else StateLost(f"LOST for {key}", key.partition)
            )
        return state
