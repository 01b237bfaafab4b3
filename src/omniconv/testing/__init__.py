"""The conformance matrix: what every operator must do, for ours and for yours.

One line gives an operator of your own the whole matrix, as a parametrised pytest test::

    test_my_operator = omniconv.testing.matrix("my_package:my_operator")
"""

from omniconv.testing.case import Case, cases, matrix
from omniconv.testing.registry import PROPERTIES, Property
from omniconv.testing.subject import Subject
from omniconv.testing.tolerances import TABLE, tolerance

__all__ = ["PROPERTIES", "TABLE", "Case", "Property", "Subject", "cases", "matrix", "tolerance"]
