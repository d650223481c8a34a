from __future__ import annotations

from collections import Counter

import pytest

from cxr_spark.dataset.adapters import UnrecognisedPath, make_adapter, parse_folder, parse_kermany
from cxr_spark.dataset.listing import walk_images
from cxr_spark.errors import UserError
from tests.conftest import shared


@pytest.mark.parametrize(
    ("image_id", "finding", "patient", "split"),
    [
        ("train/PNEUMONIA/person17_bacteria_2.jpeg", "BACTERIA", "person17", "train"),
        ("val/PNEUMONIA/person1946_bacteria_4874.jpeg", "BACTERIA", "person1946", "val"),
        ("test/PNEUMONIA/person3_virus_15.jpeg", "VIRUS", "person3", "test"),
        ("train/PNEUMONIA/person447_virus_921_1.jpeg", "VIRUS", "person447", "train"),
        ("test/NORMAL/IM-0115-0001.jpeg", "NORMAL", "IM-0115", "test"),
        ("test/NORMAL/IM-0011-0001-0002.jpeg", "NORMAL", "IM-0011", "test"),
        ("train/NORMAL/NORMAL2-IM-0383-0001.jpeg", "NORMAL", "NORMAL2-IM-0383", "train"),
        ("train/NORMAL/NORMAL2-IM-1442-0001-0002.jpeg", "NORMAL", "NORMAL2-IM-1442", "train"),
        ("train/NORMAL/NORMAL-28501-0001.jpeg", "NORMAL", "28501", "train"),
        ("train/PNEUMONIA/BACTERIA-1008087-0003.jpeg", "BACTERIA", "1008087", "train"),
        ("test/PNEUMONIA/VIRUS-2040583-0001.jpeg", "VIRUS", "2040583", "test"),
    ],
)
def test_kermany_reads_both_naming_schemes(
    image_id: str, finding: str, patient: str, split: str
) -> None:
    facts = parse_kermany(image_id)
    assert (facts.finding, facts.patient_id, facts.official_split) == (finding, patient, split)


@pytest.mark.parametrize(
    ("image_id", "reason"),
    [
        ("IM-0115-0001.jpeg", "expected {train,val,test}"),
        ("train/IM-0115-0001.jpeg", "expected {train,val,test}"),
        ("training/NORMAL/IM-0115-0001.jpeg", "expected {train,val,test}"),
        ("train/NORMAL/more/IM-0115-0001.jpeg", "expected {train,val,test}"),
        ("train/NORMAL/scan.jpeg", "neither"),
        ("train/PNEUMONIA/person17_fungus_2.jpeg", "neither"),
        ("train/PNEUMONIA/._person17_virus_2.jpeg", "neither"),
        ("train/PNEUMONIA/IM-0115-0001.jpeg", "says NORMAL and the folder says PNEUMONIA"),
        ("train/NORMAL/person17_virus_2.jpeg", "says VIRUS and the folder says NORMAL"),
    ],
)
def test_kermany_refuses_what_contradicts_the_layout(image_id: str, reason: str) -> None:
    with pytest.raises(UnrecognisedPath, match=reason):
        parse_kermany(image_id)


@pytest.mark.parametrize(
    ("image_id", "pattern", "finding", "patient", "split"),
    [
        ("COVID/a.png", None, "COVID", None, None),
        ("COVID/2020/a.png", None, "COVID", None, None),
        ("test/COVID/a.png", None, "COVID", None, "test"),
        ("COVID/p12_3.png", r"(p\d+)_", "COVID", "p12", None),
        ("train/COVID/p12_3.png", r"p\d+", "COVID", "p12", "train"),
    ],
)
def test_folder_reads_class_split_and_patient(
    image_id: str, pattern: str | None, finding: str, patient: str | None, split: str | None
) -> None:
    facts = parse_folder(image_id, pattern)
    assert (facts.finding, facts.patient_id, facts.official_split) == (finding, patient, split)


@pytest.mark.parametrize(
    ("image_id", "pattern"), [("a.png", None), ("test/a.png", None), ("COVID/a.png", r"p\d+")]
)
def test_folder_refuses_what_tells_no_class_or_patient(image_id: str, pattern: str | None) -> None:
    with pytest.raises(UnrecognisedPath):
        parse_folder(image_id, pattern)


def test_adapter_names_are_checked() -> None:
    with pytest.raises(UserError, match="Did you mean 'kermany'"):
        make_adapter("kermani")
    for pattern in ("(", "p{99999999999}", "(" * 5000 + ")" * 5000):
        with pytest.raises(UserError, match="to be a regular expression"):
            make_adapter("folder", pattern)
    with pytest.raises(UserError, match="no dataset.patient_pattern"):
        make_adapter("kermany", "p")


def test_real_images_have_the_counts_of_the_papers_table_1() -> None:
    root = shared("data/chest_xray_224")
    facts = [parse_kermany(image.image_id) for image in walk_images(str(root))]
    counts = Counter(
        ("test" if f.official_split == "test" else "development", f.finding == "NORMAL")
        for f in facts
    )
    assert counts == {
        ("development", True): 1349,
        ("development", False): 3883,
        ("test", True): 234,
        ("test", False): 390,
    }
    persons = {
        where: {
            f.patient_id
            for f in facts
            if f.finding != "NORMAL" and (f.official_split == "test") == t
        }
        for where, t in (("test", True), ("development", False))
    }
    assert len(persons["test"]) == 202
    assert len(persons["test"] & persons["development"]) == 170
