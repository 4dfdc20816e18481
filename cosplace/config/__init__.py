"""All settings: default, limits, unit and help text of each, in one place.

The settings of a command are a frozen dataclass whose fields are settings, or sections of settings.  The command line,
`config.json` and docs/commands.md are made from them; Python code creates them by name.  Importing this package imports
nothing heavy.  Defaults of training and evaluation are those of the CosPlace paper.

    names       names that users type: backbones, devices; suggestions for misspelled names
    setting     one setting, and the check of a value against its limits
    defaults    default values that functions and flags share
    methods     settings of the training methods
    shared      settings that several commands share
    sections    settings of train; sections of eval and groups
    groups      settings of groups
    evaluation  settings of eval
    extraction  settings of extract
    finetuning  settings of finetune
    distillation  settings of distill
    reproduce   settings of protocols, reproduce
    comparing   settings of compare
    auditing    settings of audit
    runs        settings of runs
    importing   settings of import
    panoramas   settings of panoramas
    validate    settings of validate
    splitting   settings of split
    pairs       settings of pairs, dataset export
    models      settings of zoo, convert, reduce
    export      settings of export
    index       settings of index build, add, remove, info, compact, calibrate
    locate      settings of locate
    server      settings of serve
    planning    settings of plan
    demo        settings of city, demo
    completion  settings of completion
    values      settings from flat names and values, and back
    terminal    settings that every command has: --quiet, --verbose, --log_format
"""
