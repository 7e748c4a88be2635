"""Result files into tables, plots and docs."""
