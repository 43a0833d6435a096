"""Vectors to captions."""
