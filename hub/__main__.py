"""`python -m hub` is the `cloudhub` command."""

import sys

from hub.cli import main

sys.exit(main())
