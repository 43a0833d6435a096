"""Scores of captions, equal to those of the COCO caption evaluation code, without Java."""
