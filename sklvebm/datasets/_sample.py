"""What a function that draws rows returns."""

from typing import Any

import numpy as np

# X, or the pair (X, factors) with `return_factors=True`. Which of the two it is, only the caller
# knows: Any lets the caller use either.
Sample = np.ndarray | Any
