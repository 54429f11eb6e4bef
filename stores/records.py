"""The facts a store keeps as JSON records: one a volume, one for what a captioner or teacher made of it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from stores.geometry import CubeChain, Geometry
from stores.recipe import Recipe, digest_of, tuples_of


@dataclass(frozen=True)
class StoredObject:
    """One chunk file: how many bytes it has, their sha256, and the checksum at its end (0: format version 1)."""

    num_bytes: int
    sha256: str
    crc32c: int = 0


@dataclass(frozen=True)
class VolumeRecord:
    """Commit record of a volume: without it, the volume does not exist.

    Attributes:
        volume: Id, unique in the store.
        subject: The person; splits are by subject.
        dataset: Name of the dataset that the scan came from.
        modality: `CT`, `MR` or `unknown`.
        body_part: For example `hippocampus`; empty when not known.
        source_digest: sha256 of the scan file's bytes.
        label_digest: sha256 of the label file's bytes; empty without one.
        item_digest: Digest of sources and recipe: the volume is up to date when this is.
        slot: Index of its chunk in every Zarr array; never used again for another volume.
        source: The scanner's grid.
        valid: Per plane, packed bits (numpy order) of the J positions that have a rendered, non-blank slice.
        objects: Chunk files by array name.
        recipe_digest: The recipe that it was made by; empty in format version 1, where a store had but one.
        num_non_finite: Voxels that were NaN or infinite in the source.
        num_padding: Voxels of the source outside the scanner's field of view.
        sequence: How an MR scan was weighted, for example `T1w`; empty when not known, and then not written.
    """

    volume: str
    subject: str
    dataset: str
    modality: str
    body_part: str
    source_digest: str
    label_digest: str
    item_digest: str
    slot: int
    source: Geometry
    valid: tuple[str, str, str]
    objects: Mapping[str, StoredObject] = field(default_factory=dict)
    recipe_digest: str = ""
    num_non_finite: int = 0
    num_padding: int = 0
    sequence: str = ""

    def slices_digest(self, recipe: Recipe) -> str:
        """Identity of the slice images: what captions and rows are made of, whatever the label map and the facts."""
        return digest_of({"source": self.source_digest, "recipe": recipe.slices_digest})

    def chain(self, recipe: Recipe) -> CubeChain:
        """The way from the scan's grid to the cube and back."""
        return CubeChain(self.source, recipe.cube_size, recipe.resampling == "two_step", recipe.aligned)

    def valid_slices(self, plane: int) -> npt.NDArray[np.int64]:
        """Positions of the plane's slices that have rows, ascending; shape (s,)."""
        return np.flatnonzero(unpack_bits(self.valid[plane]))

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON-ready values."""
        fields = asdict(self) | {"source": self.source.to_dict(), "valid": list(self.valid)}
        if not self.sequence:
            del fields["sequence"]  # as records without one have always been: their digests stay
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "VolumeRecord":
        """Rebuild a record from `to_dict`."""
        objects = {name: StoredObject(**facts) for name, facts in fields["objects"].items()}
        axial, coronal, sagittal = fields["valid"]
        rebuilt = {
            "source": Geometry.from_dict(fields["source"]),
            "valid": (axial, coronal, sagittal),
            "objects": objects,
        }
        return cls(**{**fields, **rebuilt})

    @property
    def content_digest(self) -> str:
        """Digest of everything but the slot, which depends on the order of the build."""
        fields = self.to_dict()
        del fields["slot"]
        return digest_of(fields)


def people_of(records: Iterable[VolumeRecord]) -> dict[str, list[str]]:
    """Dataset and subject of each volume, by id, as JSON-ready values."""
    return {record.volume: [record.dataset, record.subject] for record in records}


FACTS: Final = ("subject", "dataset", "modality", "body_part", "sequence")  # what a case says beside its voxels


def facts_of(case: Any) -> dict[str, str]:
    """The facts of a case; without a sequence when it has none, as before there were sequences."""
    facts = {name: getattr(case, name) for name in FACTS}
    return {name: value for name, value in facts.items() if value or name != "sequence"}


def item_digest(source: str, label: str, recipe: Recipe, facts: Mapping[str, str]) -> str:
    """Identity of a volume: the digests of its scan and label map, the recipe, and the facts of its case."""
    return digest_of({"source": source, "label": label, "recipe": recipe.digest, "facts": dict(facts)})


@dataclass(frozen=True)
class RowsRecord:
    """Commit record of a volume's rows in one row set.

    Attributes:
        item_digest: What the rows were made of: the volume's `slices_digest` (format version 1: its `item_digest`).
        captions_digest: The captions that the text part was made of; empty when there is none.
        parts: What a row holds side by side: image and text, or the patches of a dense row.
        num_rows: Rows in each plane's block.
        dim: Width of one part.
        blocks: sha256 of each plane's block.
    """

    item_digest: str
    captions_digest: str
    parts: tuple[str, ...]
    num_rows: tuple[int, int, int]
    dim: int
    blocks: tuple[str, str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "RowsRecord":
        """Rebuild a record from `to_dict`."""
        return cls(**tuples_of(fields))


@dataclass(frozen=True)
class Captions:
    """What a captioner wrote about a volume.

    Attributes:
        item_digest: What was described, as the captioner says (format version 1: the volume's `item_digest`).
        texts: Per plane, one text a valid slice, in ascending order of position.
        sources: Per plane, one letter a text that says how it came to be (`m3di.captions.captioner.SOURCES`); empty
            where the captioner has but one way.
    """

    item_digest: str
    texts: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    sources: tuple[str, str, str] = ("", "", "")

    @property
    def digest(self) -> str:
        """Digest of volume and texts."""
        return digest_of({"item_digest": self.item_digest, "texts": self.texts})

    def to_dict(self) -> dict[str, Any]:
        """Return the captions as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Captions":
        """Rebuild captions from `to_dict`."""
        axial, coronal, sagittal = (tuple(texts) for texts in fields["texts"])
        sources = fields.get("sources", ("", "", ""))
        return cls(fields["item_digest"], (axial, coronal, sagittal), (sources[0], sources[1], sources[2]))


def pack_bits(valid: npt.NDArray[np.bool_]) -> str:
    """Pack J booleans into the hex form of a record."""
    return np.packbits(valid).tobytes().hex()


def unpack_bits(packed: str) -> npt.NDArray[np.uint8]:
    """Undo `pack_bits`; the result is padded with zeros to a multiple of 8."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(packed), dtype=np.uint8))
