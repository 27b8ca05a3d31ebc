"""For authors of plug-ins: the contract suite, its drawn blueprints and the numeric comparison, to run with pytest, and
the search over vectors, to try a rule of selection on a known front.

    from morphogen.testing import contract_tests, operator_tests

    test_contract = contract_tests(MyPart)
    test_operators = operator_tests("widen_my_part", on=MyPart)

Needs `morphogen[testing]` (pytest and hypothesis).
"""

from morphogen.testing.comparison import assert_agree, outcome, relative_error
from morphogen.testing.contract import contract_tests
from morphogen.testing.models import ids_of, logits, loss_of, stirred
from morphogen.testing.operators import operator_tests
from morphogen.testing.strategies import blueprints, blueprints_with
from morphogen.testing.vectors import Vectors, searched

__all__ = [
    "Vectors",
    "assert_agree",
    "blueprints",
    "blueprints_with",
    "contract_tests",
    "ids_of",
    "logits",
    "loss_of",
    "operator_tests",
    "outcome",
    "relative_error",
    "searched",
    "stirred",
]
