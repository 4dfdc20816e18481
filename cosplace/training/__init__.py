"""The method of the paper (Berton et al., CVPR 2022).

groups                  classes and CosPlace groups (section 3.1)
group_cache             groups kept in a file
cosface                 the CosFace loss (section 3.2)
compiled_augmentation   augmentation of one image, compiled
augmentation            color jitter and random resized crop
batches                 training batches of one group
checkpoint              the state of a run, saved and resumed exactly
setup                   data, network and classifiers before the first iteration
step                    one iteration: forward, loss, backward, optimizers
loop                    epochs and groups, validation, test
dry_run                 time, memory and disk of a job, before it runs
judging                 the network to evaluate
"""
