"""Where a photo was taken: matches in an index become coordinates with a calibrated confidence.

    localizer = Localizer("indexes/city", precision=0.95)
    location = localizer.locate("photo.jpg")

Files, each importing only files listed above it:

    fusion          one position from the matches that agree
    signals         inputs of the confidence: what the list of matches says about the answer
    confidence      from signals to a probability: fit, measure, thresholds
    areas           where the photos of examples are: areas and folds
    certainty       a calibration and a threshold, which are replaced at once
    verdicts        found, probable, guess or none; the headline of an answer
    answers         the record of an answer, as text, JSON, GeoJSON and CSV
    sequences       a track from frames in time order
    stored_calibration  the calibration of an index: whether it has one, or needs another one
    localizer       photos in, locations out
    exif_positions  an answer and the position that the camera stored
    photo_changes   photos in other light and other crops, images that show no place
    seen_photos     corrections for photos that the model was trained on, and for photos of one capture
    resemblance     how many new photos resemble training photos
    stored_views    what a calibration has encoded, so that one that was stopped continues
    queries         photos to calibrate an index with
    leave_one_out   matches of photos of the index as if they were new
    chosen_photos   which photos of an index are located, and which share of new photos is like them
    calibration     fit the confidence on the photos of an index
    database_confidence  the same for an evaluation, whose database is not an index
    tracks          times of frames, frames of a video, GPX
    local_features  points of two photos that match and fit one geometry
    reranking       check doubtful answers with local features
"""
