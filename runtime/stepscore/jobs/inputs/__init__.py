"""Inputs: open files, folders and streams of several formats, found by content, as JSON Lines."""
