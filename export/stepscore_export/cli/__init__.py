"""The commands `stepscore export` and `stepscore parity`."""
