"""What captions are made of: digests that say whether they are up to date. Needs no torch."""

from collections.abc import Mapping, Sequence

from m3di.captions.captioner import Captioner
from m3di.config import Config
from m3di.volumes.cases import Case
from stores import Store
from stores.recipe import digest_of
from stores.records import Captions, VolumeRecord

Structures = Mapping[str, Mapping[int, str]]  # label names of each dataset


def captioner_fingerprint(captioner: Captioner, config: Config) -> str:
    """Identity of the captions: the captioner and whether it was told of label maps."""
    return digest_of({"captioner": captioner.fingerprint, "structures": config.captions.structures})


def described(
    store: Store, captioner: Captioner, record: VolumeRecord, config: Config, structures: Structures
) -> str:
    """Identity of what a captioner sees of a volume: slices, facts, and the label map if it is told of it."""
    seen: dict[str, object] = {
        "slices": record.slices_digest(store.recipe),
        "modality": record.modality,
        "body_part": record.body_part,
    }
    if record.sequence:
        seen["sequence"] = record.sequence
    if config.captions.structures:
        names = structures.get(record.dataset, {})
        seen |= {"label": record.label_digest, "structures": {str(value): name for value, name in names.items()}}
    if own := captioner.of_volume(record.volume):
        seen["own"] = own
    return digest_of(seen)


def captions_of(
    store: Store, captioner: Captioner, record: VolumeRecord, config: Config, structures: Structures
) -> Captions | None:
    """The captions of a volume, None when there are none or they are of something else."""
    captions = store.captions(captioner_fingerprint(captioner, config), record.volume)
    current = (described(store, captioner, record, config, structures), record.item_digest)  # the latter: version 1
    return captions if captions is not None and captions.item_digest in current else None


def structure_names(cases: Sequence[Case]) -> dict[str, dict[int, str]]:
    """Label names of each dataset that has some."""
    names: dict[str, dict[int, str]] = {}
    for case in cases:
        if case.label is not None:
            names.setdefault(case.dataset, {}).update(case.label.names)
    return names
