"""Weight files: layout, codes, row blocks."""
