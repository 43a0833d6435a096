"""Captioned data sets as others lay them out -> Record."""
