"""The numbers are held against the paper's lines as it prints them."""

import pytest

from m3di.reproduce.published import published_table

TABLE1 = """
UNet 80.9 78.1 76.6 72.3 74.7 76.5 79.9 70.9 83.3 83.2 80.5 79.5
AttUNet 81.0 78.9 77.1 74.2 75.2 77.3 79.7 70.8 83.1 83.1 79.8 79.2
Med3D 83.0 77.1 81.6 74.9 77.9 78.9 81.2 76.4 85.5 87.7 84.5 83.5
TransUNet 82.9 76.9 80.8 76.1 78.6 79.1 82.6 76.6 85.6 87.3 84.7 83.6
nnUNet 83.9 76.6 78.9 76.8 81.9 79.6 84.8 77.2 86.0 88.0 85.5 84.2
SETR 85.1 77.2 80.5 75.7 81.7 80.0 86.2 81.5 86.9 84.5 87.2 85.0
+ 85.2 81.5 81.6 80.4 85.7 82.9 89.8 82.6 89.1 88.3 90.1 87.5
UNETR 85.9 81.0 83.4 80.2 87.2 83.5 89.9 80.3 88.0 89.5 88.2 86.5
+ 86.5 81.2 85.3 83.5 89.7 85.2 91.2 83.0 90.1 91.3 90.4 88.7
nnFormer 85.2 83.3 85.5 85.0 90.6 85.9 91.9 89.1 93.1 94.6 92.8 92.4
+ 89.3 89.1 86.5 87.4 90.5 88.6 94.1 92.6 94.2 96.8 95.3 94.7
"""
TABLE2 = """
3D ResNet50 66.2 65.9
3D DenseNet121 72.3 72.7
MRNet 70.8 71.9
MedicalNet 73.9 72.7
M3T 80.2 81.7
ViT 80.5 82.6
+ 81.4 84.3
Swin-ViT 82.8 84.4
+ 84.1 85.7
"""
TABLE3 = """
Ex1: projection alone 88.3 92.6 95.1 93.8 92.5
Ex2: QTrans 91.7 94.3 95.2 94.5 93.9
Ex3: QTrans and PSPE 92.6 94.2 96.8 95.3 94.7
"""
GAINS = {("mmwhs", "Avg."): (2.9, 1.7, 2.7), ("chaos", "Liver"): (3.6, 1.3, 2.2), ("oasis", "Avg."): (2.5, 2.2, 2.3)}


@pytest.mark.parametrize("name, printed", [("table1", TABLE1), ("table2", TABLE2), ("table3", TABLE3)])
def test_every_number_is_the_papers(name, printed):
    table = published_table(name)
    width = sum(len(headings) for headings in table.columns.values())
    lines = [line.split() for line in printed.strip().splitlines()]
    assert len(lines) == len(table.lines)
    for words, line, above in zip(lines, table.lines, [None, *table.lines], strict=False):
        method = " ".join(words[:-width])
        assert (line.method, line.pretrained) == ((above.method, True) if method == "+" else (method, False))
        values = [value for dataset in table.columns for value in line.values[dataset]]
        assert values == [float(word) for word in words[-width:]]


@pytest.mark.parametrize("place", GAINS, ids=" ".join)
def test_the_gains_that_the_paper_prints_follow_from_its_numbers(place):
    table = published_table("table1")
    found = [
        table.value(method, *place, pretrained=True) - table.value(method, *place, pretrained=False)
        for method in ("SETR", "UNETR", "nnFormer")
    ]
    assert found == pytest.approx(GAINS[place], abs=0.051)


def test_what_the_paper_does_not_say_is_none():
    assert published_table("figure3") is None
    assert published_table("table1").value("UNet", "mmwhs", "LVC", pretrained=True) is None
    assert published_table("table1").value("UNet", "hippocampus", "LVC", pretrained=False) is None
