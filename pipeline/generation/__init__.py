"""Captions out of a captioner."""
