"""Report: scored records as one self-contained HTML page."""
