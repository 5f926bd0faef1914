"""Build the package, which `pyproject.toml` describes; for tools that still ask for a `setup.py`."""

import setuptools


OLDEST = 77  # the first to read the license as an SPDX expression; `pip install .` brings one by itself

if int(setuptools.__version__.partition(".")[0]) < OLDEST:
    raise SystemExit(
        f"setuptools={setuptools.__version__}: expected {OLDEST} or later. "
        "Run `pip install .`, or upgrade setuptools first."
    )

setuptools.setup()
