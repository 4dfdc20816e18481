"""Log lines of a server: JSON, one object per line."""

import json
import logging
import time


class JsonLines(logging.Formatter):
    """Formats a log record as one line of JSON: time, level, event, and the details of the event."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "note"),
            **getattr(record, "details", {}),
        }
        if text := record.getMessage():
            line["message"] = text
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
