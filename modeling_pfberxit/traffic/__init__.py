"""Traffic: when requests arrive, what they would do to a server, simulated, and what they do to a real one."""
