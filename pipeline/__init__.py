"""From shards to a trained captioner."""
