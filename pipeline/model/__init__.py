"""Encoders, decoders, and the captioner made of one of each."""
