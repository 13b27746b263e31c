"""Measures methods side by side on the same questions; printing is the command line's business."""
