"""`python -m chinchilla_lm` is the command `chinchilla`."""

import sys

from chinchilla_lm.cli import main

if __name__ == "__main__":
    sys.exit(main())
