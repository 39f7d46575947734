"""What every metadata index must do; a new back end subclasses `IndexContract` and is done when it passes."""

from tests.contract.index_commits import CommitContract
from tests.contract.index_queries import QueryContract
from tests.contract.index_reading import ReadingContract
from tests.contract.index_whole import WholeContract


class IndexContract(CommitContract, ReadingContract, QueryContract, WholeContract):
    """Subclass it and give `make`."""
