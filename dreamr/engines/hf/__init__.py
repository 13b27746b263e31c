"""The engine on transformers: requests -> scheduler -> one batched forward per step -> results."""
