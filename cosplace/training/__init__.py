"""The method of the paper (Berton et al., CVPR 2022), from groups to the training loop.

torchrun                the job that torchrun started this process for
meeting                 processes of a job find each other
processes               processes that train together: exchange, and end together
groups                  classes and CosPlace groups (section 3.1)
eigenplaces             classes of photos that look at one point (EigenPlaces, ICCV 2023)
held_out                training photos that are held out for calibration
group_cache             groups kept in a file
place_ids               groups and classes in the files of GSV-Cities
advice                  settings that suit the photos; warnings
cosface_gradient        gradient of the loss by formula
cosface                 the CosFace loss (section 3.2)
split_classifier        a classifier split by classes over processes
compiled_augmentation   augmentation of one image, compiled
gpu_augmentation        augmentation of a batch in two Triton kernels
augmentation            color jitter and random resized crop (section 4.1)
batches                 training batches of one group
places                  extension: places of few photos instead of cells of a grid
enough_places           are there enough places to train on?
place_batches           batches of several photos of each of several places
place_sources           places from tables, GSV-Cities or cells (multi_similarity)
metric_losses           losses that compare the photos of places
checkpoint              state of a run, saved and resumed exactly
best_model              the network with the best validation R@1
original_checkpoint     checkpoints of the original code
resume                  settings and folder of a resumed run
data                    groups, validation and test set of a run
validation              whether the validation set can choose a model; queries won and lost
seen_photos             training photos and validation matches, for the model card
whitened_start          extension: the last layer as a PCA whitening
starting_network        the network that a training starts from
setup                   network, classifiers, optimizers
synced_batch_norm       batch normalization over the parts of several processes
distributed_network     a network that computes a part of each batch
distributed_setup       several processes agree on what they train
plan                    what a run will do and need
validation_image        a few validation queries with their predictions
loggers                 TensorBoard, Weights & Biases, MLflow
metrics                 metrics.jsonl, and what is sent to loggers
schedules               learning rate, margin and seed of each iteration
cuda_graph              the network of a step as CUDA graphs
step                    one iteration: forward, loss, backward, optimizers
run                     a run in its folder
loop                    epochs and groups, validation, test
recommendation          the command line that suits a dataset
dry_run                 time, memory and disk of a job, before it runs
weight_averaging        the average of a network's weights
comparison              is a model better than its start?
finetuning_data         photos of a fine-tuning
finetuning_validation   models on a small validation set
finetuning_start        the model that a fine-tuning starts from
heading_check           do the headings fit the photos?
recipe                  settings of a fine-tuning, from its photos
finetuning_state        state of a fine-tuning, saved and resumed exactly
finetuning_setup        photos, start, places and recipe of a fine-tuning
finetuning_trial        one trial of a fine-tuning: epochs and validation
finetuning              fine-tune, and compare with the start
distillation_losses     losses of a student and its teacher
teacher                 the teacher of a distillation, and its descriptors on disk
distillation_setup      photos, teacher and student of a distillation
distillation            train a student to imitate its teacher
distillation_summary    what the student keeps of its teacher
"""
