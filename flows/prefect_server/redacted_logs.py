"""Redact secrets from the logs of flow and task runs, which Prefect stores with full tracebacks and all causes."""

from __future__ import annotations

import logging

from pipelines.redaction import redacted

_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


class _Redacting(logging.Filter):
    """Redacts a record's message and its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage()), None
        if record.exc_info:
            record.exc_text = redacted(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True


def redact_run_logs() -> None:
    """Redact the logs of this process's flow runs and task runs; calling it again changes nothing."""
    for name in _RUN_LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(held, _Redacting) for held in logger.filters):
            logger.addFilter(_Redacting())
