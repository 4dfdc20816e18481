"""The command line: the only module that parses arguments, prints and exits.

A user's mistake prints one line and exits with code 2.  Heavy modules are imported by the command that needs them,
so that --help answers at once.
"""

from cosplace.cli.entrance import build_parser, main

__all__ = ["build_parser", "main"]
