"""Memory: settings, estimate, and what fits a limit."""
