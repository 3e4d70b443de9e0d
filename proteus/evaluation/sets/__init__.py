"""Labelled images: folders, packs, datasets, and the sets of the paper by name."""
