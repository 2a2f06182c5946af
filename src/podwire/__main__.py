"""`python -m podwire`: the command line."""

from podwire.cli import main

main()
