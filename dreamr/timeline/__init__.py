"""Pictures of one request: one lane per actor, what each did when, and what became of it."""
