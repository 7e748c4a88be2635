"""Artifact: the pair on disk, its manifest, files and graph contract."""
