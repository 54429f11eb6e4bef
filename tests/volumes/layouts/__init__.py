"""Each layout as it lies on disk: finding cases opens no scan, so most of these scans have no bytes."""


def touch(root, *names):
    """Write files without bytes; returns the root."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def ids(cases):
    return [case.id for case in cases]


def labels(cases):
    """File of each label map below its dataset's folder, by id."""
    return {case.id: case.label and case.label.path.relative_to(case.root).as_posix() for case in cases}
