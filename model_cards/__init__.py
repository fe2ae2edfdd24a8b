"""The card template, as a data file of the installed package (`package-dir` in pyproject.toml)."""
