"""Write the pages of `docs/evidence` and `docs/speed` from the files of `benchmarks/results`.

python -m benchmarks.site_pages            # write the pages
python -m benchmarks.site_pages --check    # exit with 1 and name the pages that are stale
"""

import sys

from benchmarks.site_pages.generate import main


if __name__ == "__main__":
    sys.exit(main())
