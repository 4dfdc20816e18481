"""Settings of completion."""

from dataclasses import dataclass

from cosplace.config.setting import Section, required

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionConfig(Section):
    """Settings of `cosplace completion`."""

    shell: str = required(
        f"the shell that completes the words: {', '.join(SHELLS)}", positional=True, choices=SHELLS, metavar="SHELL"
    )
