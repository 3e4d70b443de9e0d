"""Segmentation and depth: what the patches of a model tell of every pixel."""
