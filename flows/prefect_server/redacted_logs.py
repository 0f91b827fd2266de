"""What Prefect keeps of a run's log: tracebacks too, with the texts of every cause, and so with no secret of theirs."""

from __future__ import annotations

import logging

from pipelines.redaction import redacted

_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


class _Redacting(logging.Filter):
    """Replaces a record's message, and its traceback, by what may be kept of them."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage()), None
        if record.exc_info:
            record.exc_text = redacted(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True


def redact_run_logs() -> None:
    """Keep secrets out of the logs of flow runs and task runs of this process; calling it again changes nothing."""
    for name in _RUN_LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(held, _Redacting) for held in logger.filters):
            logger.addFilter(_Redacting())
