"""`python -m druthers`, and so `torchrun -m druthers`."""

from druthers.cli import main

main()
