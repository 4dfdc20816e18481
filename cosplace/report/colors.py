"""Colors of maps and images.  Checked for the common kinds of color blindness, on light and dark pages."""

# One color per group on maps and strips, readable on white and on near-black; repeats after the last.
GROUP_COLORS = ("#2f6fd6", "#e2ad78", "#2b7d42", "#e27893", "#23b6e7", "#983a81", "#64810e", "#5423e7")
OTHER_COLOR = "#8b949e"  # unused groups, photos of the database
OUTCOME_COLORS = ("#12996a", "#c27700", "#d9381f")  # queries: correct at rank 1, correct later, not found
QUERY_COLOR = "#2f6fd6"  # queries without an evaluation

# Frames of saved images, RGB.
CORRECT_RGB, INCORRECT_RGB, QUERY_RGB = (11, 122, 75), (194, 54, 26), (110, 118, 129)
