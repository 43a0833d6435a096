"""The processes of a run: joining them, and ending them when one is lost."""
