"""The tests mirror the tree: one folder for each package, one file for each module."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))  # the tests also import the packages in `scripts`
