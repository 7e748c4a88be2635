"""Scheduling: requests of many callers meet in the windows of one engine."""
