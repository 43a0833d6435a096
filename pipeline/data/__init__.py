"""Data: the sample order, the samples of the shards, and the loaders of batches."""
