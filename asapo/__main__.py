"""`python -m asapo` is the `asapo` command."""

import sys

from asapo.cli import main

sys.exit(main())
