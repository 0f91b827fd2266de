"""What Prefect keeps of a run's log holds no secret, whatever the causes of an error say."""

from __future__ import annotations

import io
import logging

from actors.pool.runner import PoolEvent, ShardFailure
from flows.prefect_server.redacted_logs import redact_run_logs

SIGNED = "https://host/a.png?X-Amz-Signature=canary"


def test_the_logs_of_runs_hold_no_signature_in_message_arguments_or_traceback() -> None:
    redact_run_logs()
    redact_run_logs()
    written, handler = io.StringIO(), None
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        handler = logging.StreamHandler(written)
        logger.addHandler(handler)
        try:
            try:
                try:
                    raise ConnectionError(f"503 of {SIGNED}")
                except ConnectionError as cause:
                    raise RuntimeError("the table cannot be read") from cause
            except RuntimeError as error:
                logger.exception("Encountered exception during execution: %r of %s", error, SIGNED)
        finally:
            logger.removeHandler(handler)
    said = written.getvalue()
    assert "canary" not in said
    assert said.count("of https://host/a.png\n") == 4
    assert said.count("ConnectionError: 503") == said.count("in test_the_logs_of_runs") / 2 == 2


def test_what_is_told_of_a_run_holds_no_signature() -> None:
    event = PoolEvent("report_failed", f"OSError: 503 of {SIGNED}")
    failure = ShardFailure(shard_id="shard-00000", attempts=1, error=f"OSError: {SIGNED}\ntraceback", kind="error")
    assert (event.message, failure.error) == (
        "OSError: 503 of https://host/a.png",
        "OSError: https://host/a.png\ntraceback",
    )
