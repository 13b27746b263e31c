"""Prompts, step splitting, answers and data sets."""
