"""Images: opening data sets, cutting the search split, preprocessing, and feeding the training."""
