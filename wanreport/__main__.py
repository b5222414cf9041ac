"""``python -m wanreport`` is the command ``wanreport``."""

import sys

from wanreport.cli import main

if __name__ == "__main__":
    sys.exit(main())
