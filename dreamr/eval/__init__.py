"""Public benchmarks: their rows, prompts, answers and scores."""
