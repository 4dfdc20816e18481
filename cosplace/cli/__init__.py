"""The command line: the only layer that parses arguments, prints and exits.

A user's mistake prints one line and exits with code 2.  Heavy modules are imported by the command that needs them, so
that --help answers at once.

    second_signal  a second Ctrl+C ends the process
    console     progress bars, log lines, results
    text_table  tables in plain text
    command     one command: name, summary, function, settings
    help        help texts, from settings
    parser      settings from the words of a command line; suggestions for misspelled ones
    comparing   compare
    answering   eval with two folders, and without positions
    auditing    audit
    seeds       train --seeds
    training    train, groups
    distributed_training  train, also as one of several processes of torchrun
    stores      eval with two stores of descriptors
    evaluating  eval
    extract     extract
    reproduce   protocols, reproduce
    runs        runs
    importing   import
    panoramas   panoramas
    validate    validate
    splitting   split
    pairs       pairs, dataset export
    zoo         zoo
    models      convert, reduce
    export      export
    index_maintenance  index remove, info, verify, compact
    index       index build, add, sync, calibrate
    finetuning  finetune
    distillation  distill
    sidecars    locate --write: the list of changes, the confirmation
    locate      locate
    serve       serve
    planning    plan
    demo        city, demo
    commands    all commands; from a command line to an exit code
    completion  completion
    reference   docs/commands.md, from settings
"""

from cosplace.cli.commands import main

__all__ = ["main"]
