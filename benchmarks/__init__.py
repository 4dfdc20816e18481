"""The benchmark: each stage by a plain implementation and by cosplace, results compared first, then ratios.

The plain implementation follows the usual recipe of the field and is as fast as that recipe allows.  Both sides get the
same inputs and take turns, each turn in a process of its own.  A ratio is the median over turns of the plain side's
figure divided by cosplace's.  Run it with `python -m benchmarks`.  Each file imports only files above it:

    stage          what defines a stage, what is measured, what is reported
    measurement    CPU time, wall time and memory of one side, in a child process
    results        ratios, targets, growth, the table (pure functions)
    run            measures a list of stages
    filenames      generated lists of '@' file names
    plain_network  the network and loss in plain PyTorch
    groups         file names to groups; reading cached groups
    startup        scanning a folder; --help
    photos         decoding and augmenting photos
    panoramas      perspective crops of a panorama
    loading        batches from processes and threads during a training loop
    training       training step, GeM, CosFace
    retrieval      extraction, exact search
    recall         positives of queries, and recalls
    report         metrics and report of an evaluation
    stages         the list of all stages
    gpu            training on a GPU: loader, augmentation, step, whole loop
    __main__       the command line

Programs of their own: demo (the table in README.md), index (the photo index), calibration, coverage (of 95%
intervals), pictures; user (`cosplace eval` and scripts that users write instead); of the server: load_server, serving
(with http_clients, plain_server and litserve_server) and server_growth.
Needs a system that can fork; memory is measured on Linux.
"""
