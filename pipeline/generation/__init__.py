"""Captions from a captioner."""
