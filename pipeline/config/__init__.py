"""The settings of a run: dataclasses, YAML over them, flags over both."""
