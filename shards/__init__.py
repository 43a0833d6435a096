"""Packing captioned images into WebDataset tar shards. Nothing in this package imports torch."""
