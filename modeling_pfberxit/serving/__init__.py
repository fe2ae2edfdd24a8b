"""Serving: an engine that batches rows by tokens and waiting time, the HTTP routes before it, and what watches it."""
