from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3di.captions.identifiers import KINDS, _pieces, suspected, suspected_kinds

IDENTIFYING = [
    ("Compared with the study of 2021-03-04.", "date"),
    ("Prior CT from 03/04/2019 is available.", "date"),
    ("Comparison: 3/4/19.", "date"),
    ("Voruntersuchung vom 12.05.2020.", "date"),
    ("Follow-up of 12-05-2020, unchanged.", "date"),
    ("Acquired 20190304.", "date"),
    ("Seen on 4 March 2021.", "date"),
    ("Seen on March 4th, 2021 at 10:30.", "date"),
    ("Since January 2019 stable.", "date"),
    ("Last scan on the 3rd of June.", "date"),
    ("14-MAR-2018 unchanged.", "date"),
    ("2020/1/9 baseline", "date"),
    ("DOB: 01/02/1950", "birth"),
    ("Date of birth 1950.", "birth"),
    ("She was born in 1950.", "birth"),
    ("MRN 12345", "number"),
    ("mrn: AB-00123", "number"),
    ("Accession number: 20A1234", "number"),
    ("Accession 4711", "number"),
    ("Patient 0012345678 was scanned.", "number"),
    ("Study ID S-4411 reviewed.", "number"),
    ("SSN 123-45-6789", "number"),
    ("Found in 123-45-6789.", "number"),
    ("patient001 at end diastole", "number"),
    ("sub-0042 at rest", "number"),
    ("Call 555-123-4567 with questions.", "phone"),
    ("Call (555) 123-4567.", "phone"),
    ("Phone: 030 450 1234", "phone"),
    ("Results to +49 30 450 50 1234", "phone"),
    ("Write to jane.doe@hospital.org.", "e-mail"),
    ("See https://pacs.local/study?id=3.", "link"),
    ("From www.hospital.org", "link"),
    ("Read from /data/doe/scan1.nii.gz now.", "path"),
    (r"Read from C:\data\doe\scan.dcm", "path"),
    ("Saved as doe_jane.dcm", "path"),
    ("UID 1.2.840.113619.2.55.3.604688", "uid"),
    ("Mr. Smith has a nodule.", "name"),
    ("Mrs Smith-Jones returned.", "name"),
    ("Discussed with Dr. J. Miller by telephone.", "name"),
    ("Discussed with Prof. Meier.", "name"),
    ("Patient name: Jane", "name"),
    ("Name: DOE^JANE", "name"),
    ("DOE^JANE supine", "name"),
    ("Electronically signed by Miller MD.", "name"),
    ("Dictated by: Jane Miller", "name"),
    ("Radiologist: J. Miller", "name"),
    ("A 93-year-old woman.", "age"),
    ("94 year old man with cough.", "age"),
    ("Aged 91, with dementia.", "age"),
    ("97 y/o female.", "age"),
]  # fmt: skip

ORDINARY = [
    "Axial CT slice of the upper abdomen, in the middle third, at its centre.",
    "There is a 12 x 15 mm nodule in the right upper lobe.",
    "The mass measures 3.4 x 2.1 x 5.6 cm (previously 3.2 x 2.0 x 5.1 cm).",
    "Vertebrae T12 and L1-L5 are of normal height.",
    "Disc protrusion at L4/5 and L5/S1.",
    "C3/4/5 fusion is intact.",
    "Attenuation of -1000 HU in air and 45 HU in liver.",
    "Window from -1000 to 1000 HU.",
    "Staged as pT2N0M0, formerly cT3 N1 M0.",
    "BI-RADS 4, PI-RADS v2.1 score 5, LI-RADS LR-5.",
    "Series 3, image 145 shows the lesion best (3/145).",
    "Acquired on a 1.5 T scanner with 512 x 512 matrix.",
    "Hypodense lesion in segments 5/6.",
    "Nodules in segments 8/9/10 of the lung.",
    "Fractures of ribs 8-9-10 on the left.",
    "Fractures of ribs 10-11-12 on the right.",
    "Ejection fraction is 55%, end-diastolic volume 145.5 mL.",
    "A 65-year-old man with abdominal pain.",
    "A 9 year old girl; bone age 90 months.",
    "Compared with 2019, the lesion is stable.",
    "Fleischner Society 2017 guidelines apply.",
    "MR of the brain, MRS at the thalamus.",
    "MR Brain without contrast.",
    "DR chest shows no pneumothorax.",
    "T1-weighted, T2-weighted and FLAIR images.",
    "The aorta measures 4.1 cm at the level of the sinus.",
    "No acute intracranial hemorrhage, mass effect or midline shift.",
    "Left/right asymmetry and anterior/posterior drift.",
    "Heart size is normal; and/or small pericardial effusion.",
    "Lesion at the 3:00 position, 5 cm from the nipple.",
    "Signal to noise ratio of 1:30 was reached.",
    "May represent atelectasis; march fracture excluded.",
    "Doppler: peak systolic velocity 120.5 cm/s, RI 0.65.",
    "Dose length product 1234.5 mGy cm, CTDIvol 12.3 mGy.",
    "TE/TR/TI of 90/8000/2500 ms, b values 0, 500 and 1000.",
    "Verified by the patient; reported by a second reader.",
    "Impression: no change. Findings: as above.",
    "Technique: helical CT, 1.25 mm slices, pitch 0.984.",
    "Voxels of 0.9375 x 0.9375 x 1.5 mm; b=1000 s/mm2.",
    "In all 1,000,000 voxels the value is 0.123456789.",
    "Newborn with hydrocephalus, born at term.",
    "Grade 2/3 chondromalacia, ICRS 3b, 10-15% of the surface.",
    "Cobb angle of 92 degrees; residual 95 mL; 98% saturation.",
    "Dark grey tissue of high contrast fills most of the field, with large bright areas toward the top.",
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind"), IDENTIFYING)
def test_identifiers_are_suspected_with_their_kind(text, kind):
    assert kind in suspected_kinds(text)
    assert kind in suspected_kinds(f"Normal liver. {text} Normal spleen.")


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_findings_are_not(text):
    assert suspected(text) == ()


def test_the_place_is_given_and_pieces_do_not_overlap():
    text = "DOB: 01/02/1950, MRN 00123456, signed by Miller on 2021-03-04."
    found = suspected(text)
    assert [piece.kind for piece in found] == ["birth", "number", "name", "date"]
    assert [text[slice(*piece.span)] for piece in found] == [
        "DOB: 01/02/1950,", "MRN 00123456", "signed by Miller", "2021-03-04"
    ]  # fmt: skip


@given(st.text(st.sampled_from("0123456789./-: ABCabcDrMn@^\\")))
def test_any_text_gives_pieces_in_order(text):
    found = suspected(text)
    spans = [piece.span for piece in found]
    assert all(0 <= start < stop <= len(text) for start, stop in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    assert {piece.kind for piece in found} <= set(KINDS)


words = st.sampled_from([word for text, _ in IDENTIFYING for word in text.split(" ")] + ["12", "9", "L1", "mm"])


@given(st.lists(words, max_size=8).map(" ".join))
def test_a_text_that_is_not_looked_at_closely_holds_nothing(text):
    assert bool(suspected(text)) == any(True for _ in _pieces(text))


@pytest.mark.parametrize("piece", ["1.2.", "1-", "/a", "a@", "12 ", "a.", "Dr A. ", "(12) ", "A-", "name "])
def test_long_texts_take_no_more_than_linear_time(piece):
    suspected(piece * (20_000 // len(piece)))
