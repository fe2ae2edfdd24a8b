"""The ready-made configurations, as data files of the installed package (`package-dir` in pyproject.toml)."""
