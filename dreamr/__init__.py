"""dreamr: speculative reasoning on Ray (DREAM-R, arXiv 2605.28678)."""
