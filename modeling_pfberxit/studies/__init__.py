"""The experiments of this repository: comparisons of systems, and the paper's tables and figures."""
