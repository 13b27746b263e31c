"""SAPO: trains the draft to write steps that the target accepts, that lead to correct answers, and that are short."""
