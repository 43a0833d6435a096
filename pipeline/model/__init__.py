"""Encoder, decoders, and the captioner made of them."""
