"""Settings that every command has: what it shows while it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from cosplace.config.setting import Section, setting
from cosplace.config.values import all_settings
from cosplace.errors import ConfigError

LOG_FORMATS = ("text", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalSettings(Section):
    """What a command shows on stderr while it runs"""

    quiet: bool = setting(False, "show only warnings and errors, no progress")
    verbose: bool = setting(False, "show details that otherwise only debug.log has")
    log_format: str = setting(
        "text", "log lines and progress as text, or as one JSON object per line", choices=LOG_FORMATS, metavar="FORMAT"
    )

    def __post_init__(self) -> None:
        """Check that the settings fit together."""
        if self.quiet and self.verbose:
            raise ConfigError("--quiet contradicts --verbose. Use only one of them.")


def take_terminal_settings(words: Sequence[str]) -> tuple[TerminalSettings, list[str]]:
    """Split a command line into these settings, which may stand anywhere before `--`, and the other words."""
    values: dict[str, Any] = {}
    end = list(words).index("--") if "--" in words else len(words)
    rest, waiting = [], iter(words[:end])
    for word in waiting:
        flag, equals, value = word.partition("=")
        if word in ("--quiet", "--verbose"):
            values[word[2:]] = True
        elif flag == "--log_format":
            value = value if equals else next(waiting, "")
            if not value:
                raise ConfigError(f"--log_format needs a value: {' or '.join(LOG_FORMATS)}.")
            values["log_format"] = value
        else:
            rest.append(word)
    settings = TerminalSettings(**values)
    for one in all_settings(TerminalSettings):
        one.check(getattr(settings, one.name))
    return settings, [*rest, *words[end:]]


TERMINAL_FLAGS = tuple(one.name for one in fields(TerminalSettings))
