"""Every test starts from the same random numbers, whichever tests ran before it and in whichever process.

None fails for being slow: an example that starts ONNX Runtime beside other jobs takes more than hypothesis' 0.2 s.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("onnxq", deadline=None)
settings.load_profile("onnxq")

STATES: dict[str, dict[str, Any]] = {}


@pytest.fixture(autouse=True)
def same_random_numbers(request: pytest.FixtureRequest) -> None:
    """Put the generators of the test's module back to where they were after its import."""
    for name in ("RNG", "rng"):
        generator = getattr(request.module, name, None)
        if isinstance(generator, np.random.Generator):
            first = STATES.setdefault(
                f"{request.module.__name__}.{name}", deepcopy(dict(generator.bit_generator.state))
            )
            generator.bit_generator.state = deepcopy(first)
