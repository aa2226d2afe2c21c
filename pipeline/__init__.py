"""Tidewatch: windows of sensor readings or network measurements in, calibrated anomaly alerts out.

The names below are the public ones; each is loaded from its module when it is first used, so that importing the package
costs nothing. For programs beside Tidewatch the message formats are all there is to know::

    from pipeline import encode_json, decode_scores, decode_alert
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.errors import ConfigurationError, DecodeError, TidewatchError, TransientError
    from pipeline.profile import Profile
    from pipeline.records import Alert, Scores, Windows
    from pipeline.settings import Settings
    from pipeline.wire import decode_alert, decode_dead_letter, decode_scores, encode_json, encode_packed, json_schema
    from pipeline.wiring import build_worker
    from pipeline.worker import Worker

__version__ = "0.1.0"

_MODULE_OF = {
    "Alert": "pipeline.records",
    "ConfigurationError": "pipeline.errors",
    "DecodeError": "pipeline.errors",
    "Profile": "pipeline.profile",
    "Scores": "pipeline.records",
    "Settings": "pipeline.settings",
    "TidewatchError": "pipeline.errors",
    "TransientError": "pipeline.errors",
    "Windows": "pipeline.records",
    "Worker": "pipeline.worker",
    "build_worker": "pipeline.wiring",
    "decode_alert": "pipeline.wire",
    "decode_dead_letter": "pipeline.wire",
    "decode_scores": "pipeline.wire",
    "encode_json": "pipeline.wire",
    "encode_packed": "pipeline.wire",
    "json_schema": "pipeline.wire",
}

__all__ = [
    "Alert",
    "ConfigurationError",
    "DecodeError",
    "Profile",
    "Scores",
    "Settings",
    "TidewatchError",
    "TransientError",
    "Windows",
    "Worker",
    "__version__",
    "build_worker",
    "decode_alert",
    "decode_dead_letter",
    "decode_scores",
    "encode_json",
    "encode_packed",
    "json_schema",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
