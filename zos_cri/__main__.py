"""`python -m zos_cri` is `zos-cri`."""

import sys

from zos_cri.cli.main import main

sys.exit(main())
