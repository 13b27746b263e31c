"""One file per schedule; all share the same interface, stop rules and Trace."""
