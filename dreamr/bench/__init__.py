"""Measures methods side by side on the same questions. `dreamr.cli` prints the results."""
