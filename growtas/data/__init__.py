"""Images: opens data sets, makes the search split, preprocesses images, and feeds the training."""
