"""The settings of a run: dataclasses with defaults, read from YAML files and options."""
