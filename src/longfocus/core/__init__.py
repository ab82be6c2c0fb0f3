"""The paper in plain torch: no state, no I/O, no transformers.

attention   Partial, attend, merge: attention over a union of key sets, one set at a time
crossbatch  the training form: rows attend to the windows of other rows
plans       who attends to whom in crossbatch
positions   rotary encoding as memory sees it
windows     how a stream of tokens is cut into windows
reference   all of it again as plain formulas, the oracle of the tests
"""

from longfocus.core.attention import Partial, attend, gate, merge
from longfocus.core.crossbatch import crossbatch_attention
from longfocus.core.plans import check_plan, paper_plan, published_plan

__all__ = [
    "Partial",
    "attend",
    "check_plan",
    "crossbatch_attention",
    "gate",
    "merge",
    "paper_plan",
    "published_plan",
]
