"""The return type of functions that draw rows."""

from typing import Any

import numpy as np

# X, or the pair (X, factors) with `return_factors=True`; Any lets callers use either.
Sample = np.ndarray | Any
