"""Forward the library's log to Dagster's event log, and format Dagster's log for a terminal and for other programs."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from bert_pipeline.core.printable import one_record

LIBRARY = logging.getLogger("bert_pipeline")


class _Forward(logging.Handler):
    def __init__(self, target: logging.Logger) -> None:
        super().__init__()
        self.target = target

    def emit(self, record: logging.LogRecord) -> None:
        self.target.log(record.levelno, one_record(record.getMessage()))


@contextmanager
def library_log_in(target: logging.Logger) -> Iterator[None]:
    """Forward log records of bert_pipeline to `target` (an asset's `context.log`) inside the block."""
    handler, level = _Forward(target), LIBRARY.level
    LIBRARY.addHandler(handler)
    LIBRARY.setLevel(logging.INFO)
    try:
        yield
    finally:
        LIBRARY.setLevel(level)
        LIBRARY.removeHandler(handler)


class _Readable(logging.Formatter):
    """`time  asset  message`; for a failed step, also the error that caused it."""

    def format(self, record: logging.LogRecord) -> str:
        meta = record.__dict__["dagster_meta"]
        event, message = meta["dagster_event"], meta["orig_message"]
        if error := _error_of(event):
            message += f"\n{error.to_string()}"
        return one_record(f"{self.formatTime(record, '%H:%M:%S')}  {meta['step_key'] or '':<21}  {message}")


def _error_of(event: Any) -> Any:
    """The error that caused the failure of a step; None for other events."""
    error = event.step_failure_data.error if event and event.is_step_failure else None
    while error and error.cause:
        error = error.cause
    return error


def _is_worth_reading(record: logging.LogRecord) -> bool:
    """Keep log lines and failures; of Dagster's other events, only the success of each step."""
    meta = record.__dict__["dagster_meta"]
    event = meta["dagster_event"]
    if "did not yield or return expected outputs" in meta["orig_message"]:
        return False  # the outputs of tasks that the recipe does not evaluate
    return event is None or record.levelno >= logging.WARNING or event.event_type_value == "STEP_SUCCESS"


@dg.logger
def console(context: dg.InitLoggerContext) -> logging.Logger:
    """Show progress and the end of each step on stderr, one line each."""
    logger = logging.Logger("console", logging.DEBUG)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Readable())
    handler.addFilter(_is_worth_reading)
    logger.addHandler(handler)
    return logger


class _AsRow(logging.Formatter):
    """One JSON object: time, step, level, event (of Dagster) and message; for a failed step, its error."""

    def format(self, record: logging.LogRecord) -> str:
        meta = record.__dict__["dagster_meta"]
        event, error = meta["dagster_event"], _error_of(meta["dagster_event"])
        row = {
            "time": record.created,
            "step": meta["step_key"],
            "level": record.levelno,
            "event": event.event_type_value if event else None,
            "message": f"{error.cls_name}: {error.message}" if error else meta["orig_message"],
        }
        return json.dumps(row)


@dg.logger(config_schema={"path": str})
def rows(context: dg.InitLoggerContext) -> logging.Logger:
    """Append the log to a file, one JSON object a line, for a program that follows the run."""
    logger = logging.Logger("rows", logging.DEBUG)  # Dagster logs the start and the success of a step as DEBUG
    handler = logging.FileHandler(Path(context.logger_config["path"]), encoding="utf-8")
    handler.setFormatter(_AsRow())
    handler.addFilter(lambda record: record.levelno >= logging.INFO or record.__dict__["dagster_meta"]["dagster_event"])
    logger.addHandler(handler)
    return logger
