"""``python -m wanreport`` is the command ``wanreport``."""

import sys

from wanreport.cli import main

sys.exit(main())
