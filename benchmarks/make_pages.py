"""Write the pages of `docs/evidence` and `docs/speed` from the files of `benchmarks/results`.

python benchmarks/make_pages.py            # write the pages
python benchmarks/make_pages.py --check    # exit with 1 and name the pages that are stale
"""

import sys

from site_pages.generate import main


if __name__ == "__main__":
    sys.exit(main())
