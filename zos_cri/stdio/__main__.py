"""`python -m zos_cri.stdio`: the logger process."""

from zos_cri.stdio.main import main

if __name__ == "__main__":
    raise SystemExit(main())
