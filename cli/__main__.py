"""`python -m cli`: the same as `m3di`."""

from cli.app import main

main()
