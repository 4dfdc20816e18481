"""What the results of an evaluation are worth: intervals, metrics, protocols, comparison.

intervals    95% intervals, for queries that are not independent
absolute_means  the interval of a sum of absolute means, such as a calibration error
measures     all metrics of one evaluation, as data
confidence_scores  whether a high score of a prediction means that it is correct
conditions   under which conditions queries were taken, and the recall of each
metrics      compute all metrics of one evaluation
records      metrics as JSON and as lines of text
protocols    named protocols of the field, and whether a dataset matches one
published    published figures and licenses of released models
provenance   where the numbers of a run come from: dataset, model, code, machine, times
run_files    files of a run, and the table of its queries
audit        wrong answers that look right, and verdicts of people on them
comparison   runs on the same queries: differences of recalls, queries won and lost
compression_loss  what a search by compressed descriptors loses
run_list     the runs below a folder, with their main figures
"""
