"""Remote data sets: shards behind URLs, verified and cached on this machine."""
