"""HTML pages of results, predictions and calibration.

words               counts, distances, labels and JSON as text
data                what a report shows
colors              colors of maps and images
charts              charts: data for the browser, and tables
curves              recall, loss and validation charts
metric_charts       charts of the metrics of one evaluation, with intervals
maps                maps of groups and of query results
thumbnails          small copies of photos
prediction_images   predictions saved as images and as a table
answer_files        answers for queries without positions, as CSV and JSON
query_data          all queries, for the page's script
feature_matches     matching points of a query and its predictions
query_rows          rows of the list of queries
environment         command, versions and times as rows of a table
measures_section    the metrics of an evaluation, for the page
render              pages from the templates of the folder templates/
page                the report of a run
comparison_tables   a comparison of runs as text, Markdown, LaTeX and JSON
comparison_page     a comparison of runs, with the queries that flipped
audit_page          wrong answers that look right, to judge
validation_page     the check of a dataset
calibration_page    the calibration of an index
zoo_page            the released models, to sort and filter
results             results.json, images and report of an evaluation
training_results    the same of a training, with what was trained
"""
