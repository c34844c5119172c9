"""``python -m dmcmc_core VERB``."""

import sys

from dmcmc_core.workbench.cli import main

sys.exit(main())
