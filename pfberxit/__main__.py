"""`python -m pfberxit`."""

from .cli import main

main()
