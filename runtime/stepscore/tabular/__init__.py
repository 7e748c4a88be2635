"""Tables of figures, and their text as CSV, Markdown and LaTeX. Pure."""
