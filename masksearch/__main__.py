"""`python -m masksearch`."""

from masksearch.cli import main

main()
