"""`python -m modeling_pfberxit`: the command line of the package `pfberxit`."""

from pfberxit.cli import main

main()
