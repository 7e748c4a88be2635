"""HTTP server of one pair: routes, limits, keys, metrics and the life of the process."""
