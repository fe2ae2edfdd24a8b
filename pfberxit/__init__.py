"""The command line of `modeling_pfberxit`."""
