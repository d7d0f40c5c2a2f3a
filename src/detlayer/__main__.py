"""`python -m detlayer`."""

from detlayer.cli import main

main()
