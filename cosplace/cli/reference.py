"""docs/commands.md, from settings:  python -m cosplace.cli.reference > docs/commands.md"""

import re
import textwrap
from collections.abc import Iterator

from cosplace.cli.command import Command
from cosplace.cli.commands import COSPLACE
from cosplace.cli.help import explanation, flag_text, usage, usage_of
from cosplace.cli.parser import leaf_commands
from cosplace.config.setting import Setting

WIDTH = 120  # characters per line
HEADER = """# Commands

All commands, their arguments and flags. `cosplace COMMAND --help` prints the same. This page is generated from the
settings in `cosplace/config`: `python -m cosplace.cli.reference > docs/commands.md`.

Flags can be shortened to any unique beginning. `python3 train.py` and `python3 eval.py` are `cosplace train` and
`cosplace eval`. A mistake on the command line prints one line and exits with code 2; Ctrl+C exits with code 130,
SIGTERM with code 143. Training saves a checkpoint first; a second signal ends it at once.

All commands also accept:

- `--quiet`: show only warnings and errors, no progress.
- `--verbose`: show details that otherwise only `debug.log` has.
- `--log_format json`: log lines, progress and errors on stderr as one JSON object per line (`time`, `event`, `message`;
  progress has `task`, `done`, `total`). Results still go to stdout as without it.

Progress is a bar in a terminal, and otherwise at most one line per minute. Colors are used only in a terminal, and not
if `NO_COLOR` is set. To complete commands, flags and their values with the Tab key, write one file:

```
cosplace completion bash > ~/.local/share/bash-completion/completions/cosplace
cosplace completion zsh > ~/.zfunc/_cosplace      # a folder of $fpath
cosplace completion fish > ~/.config/fish/completions/cosplace.fish
```
"""


def reference() -> str:
    """Return the page, in Markdown."""
    lines = [HEADER]
    for prog, command in leaf_commands(COSPLACE):
        lines += [f"## {prog}", "", *textwrap.wrap(command.summary, WIDTH), "", "```"]
        lines += textwrap.wrap(usage(command, prog), WIDTH - 10)
        lines += ["```", *_settings(command)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _settings(command: Command) -> Iterator[str]:
    yield ""
    for one in command.settings:
        if one.positional:
            yield from _item(usage_of(one), one)
    for group in command.groups:
        flags = [one for one in group.settings if not one.positional]
        if flags and group.section is not None:
            yield from ("", f"**{group.title}**", "")
        for one in flags:
            yield from _item(flag_text(one), one)
    yield ""


def _item(label: str, one: Setting) -> list[str]:
    return textwrap.wrap(
        f"- `{label}`: {explanation(one)}",
        WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    print(reference(), end="")
