"""Parquet output: scored lines as columns, with their provenance in the metadata of the file."""
