"""Captions and scores of a data set."""
