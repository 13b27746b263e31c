"""Maintenance of this repository: making the embedded pair, tables in documents, load, ablation. Not in the wheel."""
