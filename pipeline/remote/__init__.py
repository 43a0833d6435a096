"""Shards behind URLs: a verified, bounded cache on this machine."""
