"""All settings: default, unit and help text of each, in one place.

A command's settings are a frozen dataclass of sections; a section is a frozen dataclass of fields made by `knob`.  The
command line is derived from them, `config.json` is written from them, and Python callers build them by name.  Importing
this package imports nothing heavy.  Defaults are those of the CosPlace paper.

    knobs      one setting: default, limits, help text
    sections   groups of settings, and the settings of each command
    values     settings to and from flat names and values
"""
