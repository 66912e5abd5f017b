"""Packed slices for tests."""

from data.store.store import StoreWriter


def write_store(path, subjects, **form):
    """Write a store from `SubjectSlices`; labels are stored if the first subject has them."""
    first, *rest = subjects
    with StoreWriter(path, has_labels=first.labels is not None, **form) as store:
        for subject in (first, *rest):
            store.add(subject)
