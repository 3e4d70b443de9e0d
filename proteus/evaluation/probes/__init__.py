"""k-NN, linear probe and logistic regression: what the features of a model tell of an image."""
