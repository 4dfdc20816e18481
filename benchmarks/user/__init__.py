"""From a folder of photos to recalls: `cosplace eval` and three scripts that users write or copy instead.

Each side is a command of its own, with the same photos and weights.  Their descriptors and recalls are compared before
any figure is printed.  Run it with `python -m benchmarks.user`.  Each file imports only files above it:

    shared_steps        shared by the three scripts: arguments, the network, positives and recalls
    methods_evaluation  like the evaluation scripts of method papers: a DataLoader, faiss, scikit-learn
    feature_file        like hloc: descriptors in an HDF5 file, then a list of pairs
    plain_script        one loop with torch and faiss
    photos              the photos and the weights
    commands            wall time, CPU time, memory and disk space of a command and its processes
    table               comparison of the results, ratios, the table (pure functions)
    __main__            the command line
"""
