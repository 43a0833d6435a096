"""What every process of a run needs first: exit codes, stop requests, ranks. No torch."""
