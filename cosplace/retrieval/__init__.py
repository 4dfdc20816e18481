"""Descriptors of datasets, exact search, positives and recall.

dataset             a database with its queries
shards              descriptors in a folder, memory-mapped
extraction          photos -> descriptors, in memory or in shards
baselines           descriptors without a network
search              k nearest descriptors
compiled_codes      Hamming distances of binary codes, compiled
compression         search by compressed descriptors, compared again by full ones
pairs               image pairs for hloc and COLMAP
recall              positives and Recall@N
query_views         sizes and crops of queries; the search with several crops
evaluation          extraction, search and recall on one dataset
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
