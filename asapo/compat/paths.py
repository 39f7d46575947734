"""Which names messages of ASAP::O may have: paths below the folder of their kind, checked before anything is made."""

from __future__ import annotations

from asapo.client_path import check_client_path
from asapo.errors import WrongInput


def check_exposed_path(source_type: str, name: str) -> str:
    r"""Return the path of a message: relative, below `raw/` or `processed/`, with `\` turned into `/`.

    Raises
    ------
    WrongInput
        If it lies elsewhere, or a part of it may not be there (`..` and all that `asapo.client_path` refuses).

    >>> check_exposed_path("processed", r"processed\scan1\img.cbf")
    'processed/scan1/img.cbf'
    """
    path = check_client_path(name.replace("\\", "/"))
    first, _, rest = path.partition("/")
    if first != source_type or not rest:
        raise WrongInput(
            f"path {name!r:.100}: expected '{source_type}/...', because the producer is of source type {source_type}"
        )
    return path
