"""Fixed, stratified splits, and the choice of labelled images in the few-label setting."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from nasdistill.errors import DataError, one_line
from nasdistill.interfaces.task import Split
from nasdistill.seeds import torch_generator
from nasdistill_tasks.sources import Images


def complete(
    given: Mapping[Split, Images], *, validation: float, test: float, seed: int, origin: str
) -> dict[Split, Images]:
    """Return train, validation and test; what is missing is taken from the training images, stratified by class.

    With no split given, scikit-learn's stratified ``train_test_split`` runs twice with ``random_state=seed``: first
    ``test_size = validation + test`` of everything, then ``test / (validation + test)`` of that part. For the digits
    at .2 and .2 that is 1078 / 359 / 360 images. With one of the two given, the other's share of what it would have had
    beside train alone is taken: ``validation / (1 - test)``, ``test / (1 - validation)``. The order within each part
    is that of the data.

    Raises:
        DataError: too few images of a class to split.
    """
    train, labels = given["train"], given["train"].labels.numpy()
    index: dict[Split, np.ndarray] = {"train": np.arange(len(train.labels))}
    if "validation" not in given and "test" not in given:
        index["train"], rest = cut(index["train"], labels, validation + test, seed=seed, origin=origin)
        share = test / (validation + test)
        index["validation"], index["test"] = cut(rest, labels, share, seed=seed, origin=origin)
    elif "validation" not in given:
        share = validation / (1 - test)
        index["train"], index["validation"] = cut(index["train"], labels, share, seed=seed, origin=origin)
    elif "test" not in given:
        share = test / (1 - validation)
        index["train"], index["test"] = cut(index["train"], labels, share, seed=seed, origin=origin)
    return {**given, **{split: train.select(torch.from_numpy(np.sort(part))) for split, part in index.items()}}


def cut(
    index: np.ndarray, labels: np.ndarray, share: float, *, seed: int, origin: str, what: str = "images"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions that stay and those that are taken, stratified by class.

    Args:
        index: ``(k,)`` positions to divide.
        labels: ``(n,)`` of all positions.
        share: share that is taken.
        seed: of scikit-learn's ``train_test_split``.
        origin: name of the data for messages.
        what: what the data are, for messages.

    Raises:
        DataError: too few of a class to split.
    """
    from sklearn.model_selection import train_test_split

    try:
        stay, taken = train_test_split(index, test_size=share, stratify=labels[index], random_state=seed, shuffle=True)
    except ValueError as error:
        counts = np.bincount(labels)
        raise DataError(
            f"{origin}: too few {what} to split off {share:.0%} of each class; the smallest class has "
            f"{int(counts.min())} of {len(labels)} {what} ({one_line(error).split('. ')[0]})",
            hint=f"Add {what}, or provide separate validation and test data.",
        ) from None
    return stay, taken


def choose_labelled(labels: Tensor, share: float, seed: int) -> Tensor:
    """Return ``(n,)`` bool: `share` of each class, rounded, at least one image per class.

    A smaller share chooses a subset of a larger one's images, so label counts can be compared.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label).squeeze(1)
        order = torch.randperm(len(members), generator=torch_generator(seed, "labelled", label))
        chosen[members[order[: max(1, round(share * len(members)))]]] = True
    return chosen
