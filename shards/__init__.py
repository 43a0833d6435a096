"""Batch jobs that pack captioned images into WebDataset tar shards. Imports no torch."""
