"""Fixed, stratified splits, and the choice of labelled images in the few-label setting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nasdistill.errors import DataError
from nasdistill.interfaces.task import Split
from nasdistill.seeds import torch_generator
from nasdistill_tasks.sources import Images


def complete(
    given: Mapping[Split, Images],
    *,
    validation: float,
    test: float,
    seed: int,
    origin: str,
    classes: Sequence[str] = (),
) -> dict[Split, Images]:
    """Return train, validation and test; what is missing is taken from the training images by :func:`divide`.

    Raises:
        DataError: too few images of a class to split.
    """
    train = given["train"]
    how = {"validation": validation, "test": test, "seed": seed, "origin": origin, "classes": classes}
    index = divide(train.labels.numpy(), list(given), **how)  # type: ignore[arg-type]
    return {**given, **{split: train.select(torch.from_numpy(part)) for split, part in index.items()}}


def divide(
    labels: np.ndarray,
    given: Collection[Split],
    *,
    validation: float,
    test: float,
    seed: int,
    origin: str,
    classes: Sequence[str] = (),
    what: str = "images",
    hint: str = "provide separate validation and test data.",
) -> dict[Split, np.ndarray]:
    """Return the positions of the training data that stay, and of the splits that are missing, stratified by class.

    With no split given, scikit-learn's stratified ``train_test_split`` runs twice with ``random_state=seed``: first
    ``test_size = validation + test`` of everything, then ``test / (validation + test)`` of that part. For the digits
    at .2 and .2 that is 1078 / 359 / 360 images. With one of the two given, the other's share of what it would have had
    beside train alone is taken: ``validation / (1 - test)``, ``test / (1 - validation)``. The order within each part
    is that of the data.

    Args:
        labels: ``(n,)`` of the training data, in ``[0, K)``.
        given: splits that are there.
        validation: share of validation data.
        test: share of test data.
        seed: of scikit-learn's ``train_test_split``.
        origin: name of the data for messages.
        classes: K names, for messages.
        what: what the data are, for messages.
        hint: what to do beside adding data, for messages.

    Raises:
        DataError: too few of a class to split.
    """
    everything = np.arange(len(labels))
    shares: dict[Split, float] = {"validation": validation, "test": test}
    missing = [split for split in shares if split not in given]
    if not missing:
        return {}
    if len(missing) == 2:
        cuts = [validation + test, test / (validation + test)]
    else:
        cuts = [validation / (1 - test) if missing == ["validation"] else test / (1 - validation)]

    def cut(index: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
        _, counts = np.unique(labels[index], return_counts=True)
        if not _can_cut(int(counts.min()), len(counts), len(index), share):
            raise _too_few(labels, cuts, ["train", *missing], origin, classes, what, hint)
        from sklearn.model_selection import train_test_split

        stay, gone = train_test_split(index, test_size=share, stratify=labels[index], random_state=seed, shuffle=True)
        return stay, gone

    if len(missing) == 1:
        stay, taken = cut(everything, cuts[0])
        found: dict[Split, np.ndarray] = {"train": stay, missing[0]: taken}
    else:
        stay, rest = cut(everything, cuts[0])
        found = {"train": stay}
        found["validation"], found["test"] = cut(rest, cuts[1])
    return {split: np.sort(index) for split, index in found.items()}


def _can_cut(least: int, kinds: int, size: int, share: float) -> bool:
    """Return whether scikit-learn takes a share of `size` samples of `kinds` classes, the smallest with `least`.

    It wants two of each class, and in both parts as many as there are classes.
    """
    taken = math.ceil(share * size)
    return least >= 2 and min(taken, size - taken) >= kinds


def _too_few(
    labels: np.ndarray,
    cuts: Sequence[float],
    splits: Sequence[Split],
    origin: str,
    classes: Sequence[str],
    what: str,
    hint: str,
) -> DataError:
    """Return the error that names the classes of which there are too few, and how many are enough."""
    counts = np.bincount(labels)
    kinds = [int(kind) for kind in np.argsort(counts, kind="stable") if counts[kind]]

    def fits(least: int) -> bool:
        size = int(np.maximum(counts[kinds], least).sum())
        for share in cuts:
            if not _can_cut(least, len(kinds), size, share):
                return False
            taken = math.ceil(share * size)
            least, size = least * taken // size, taken  # of each class at least so many are taken
        return True

    enough = next(filter(fits, itertools.count(2)))
    small = [kind for kind in kinds if counts[kind] < enough]
    names = [f"{classes[kind]!r} ({counts[kind]})" if classes else f"{kind} ({counts[kind]})" for kind in small[:8]]
    return DataError(
        f"{origin}: too few {what} of {', '.join(names)}{' ...' if len(small) > 8 else ''} to have each class in "
        f"{', '.join(splits[:-1])} and {splits[-1]} data; {enough} of each class are enough",
        hint=f"Add {what} of such a class, or leave it out; or {hint}",
    )


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
