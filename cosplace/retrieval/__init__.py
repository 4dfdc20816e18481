"""Descriptors of datasets, exact search, positives and recall.

dataset             a database with its queries
store_files         files in a folder or on object storage, each written whole or not at all
photo_changes       whether the files of photos have changed since
npy_headers         headers of .npy files
store_shapes        the JSON files of a store, checked when they are read
shards              descriptors in files of rows, memory-mapped
shard_claims        which worker computes which shard
stored_photos       the list of photos that a store has descriptors of
extraction          photos -> descriptors, in memory or in shards
baselines           descriptors without a network
exact_distances     exact distances of candidates; the nearest of few queries, without torch
search              k nearest descriptors
compiled_codes      Hamming distances of binary codes, compiled
compression         search by compressed descriptors, compared again by full ones
stored_codes        codes in place of descriptors in a store
descriptor_store    a store of descriptors: opening, state, checksums
store_extraction    photos -> a store, by any number of workers at once
extraction_job      model, photos and settings of `cosplace extract`
ray_extraction      the same as tasks of a Ray cluster
pairs               image pairs for hloc and COLMAP
recall              positives and Recall@N
crop_ranking        one ranked list for each query with several crops
query_views         sizes and crops of queries; the search with several crops
evaluation_checks   what makes recalls meaningless
evaluation          extraction, search and recall on one dataset
rank_group          exchange of arrays between the ranks of torchrun
store_search        exact search of a store that is larger than memory, by any number of ranks
store_evaluation    evaluation of two stores
two_folders         photos of any two folders: neighbors without positions, copies
reduction_fitting   fit a reduction on photos
photo_contents      all photos opened once: sizes, checksums, thumbnails
capture_times       when photos were taken; signs of a wrong clock
folder_report       what a check found in one folder
leaks               duplicates, and photos that splits share
query_choice        which photos of a set become queries
splitting           train, val and test by areas, time or sequences
validation          problems with photos and names, before a dataset is used
dry_run             time, memory and disk space of an evaluation, before it runs
"""
