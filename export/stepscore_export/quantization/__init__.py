"""Arrays into codes and scales: pure functions, no files, no graphs."""
