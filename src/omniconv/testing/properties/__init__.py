"""What the matrix asserts, grouped by module; importing this package defines all of it."""

from omniconv.testing.properties import (  # noqa: F401
    calls,
    claims,
    compilers,
    construction,
    layouts,
    masks,
    numbers,
    precision,
    refusals,
    state,
    surgery,
)  # isort: skip
