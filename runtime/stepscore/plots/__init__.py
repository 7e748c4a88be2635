"""Figures for papers: what a plot shows, as numbers, and how it is drawn."""
