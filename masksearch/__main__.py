"""`python -m masksearch`."""

from masksearch.cli.main import main

main()
