"""``python -m dmcmc_core VERB``."""

import sys

from dmcmc_core.cli import main

sys.exit(main())
