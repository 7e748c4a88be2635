"""The pair on disk: manifest, files, graph contract."""
