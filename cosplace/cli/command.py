"""One command: its name, summary, function and settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from cosplace.config.setting import Setting
from cosplace.config.values import SettingGroup, all_settings, setting_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A word of the command line: a command with settings, or one with actions, such as `cosplace index`.

    function: "module:function" in cosplace.cli, imported when the command is used.  Its parameter `config` has the type
    of the settings; with a parameter `given` it also gets the values that the command line gives, by name.
    """

    name: str
    summary: str  # one sentence
    function: str = ""
    actions: tuple["Command", ...] = ()
    default_action: str = ""  # the action when none is given
    topics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # heading in help -> names of actions

    @property
    def run(self) -> Callable[..., None]:
        """The function."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(f"cosplace.cli.{module}"), name)

    @property
    def config(self) -> type:
        """Dataclass of the settings."""
        return self.run.__annotations__["config"]

    @property
    def groups(self) -> list[SettingGroup]:
        """The settings by section."""
        return list(setting_groups(self.config)) if self.function else []

    @property
    def settings(self) -> list[Setting]:
        """All settings."""
        return all_settings(self.config) if self.function else []

    def find_action(self, name: str) -> "Command | None":
        """Return the action with a name, or None."""
        return next((action for action in self.actions if action.name == name), None)

    def __call__(self, config: Any, given: Mapping[str, Any]) -> None:
        """Run the command."""
        if "given" in self.run.__annotations__:
            self.run(config, given)
        else:
            self.run(config)
