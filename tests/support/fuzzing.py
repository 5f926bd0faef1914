"""Settings and strategies of tests with thousands of drawn inputs, the same in every run."""

from damage import CASES
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


QUICK = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
FEW = settings(QUICK, max_examples=max(20, CASES // 20))
# -------------------------------------------------------------------------------------------------------------- configs


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
