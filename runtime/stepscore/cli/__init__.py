"""Command line: options in, text and exit codes out."""
