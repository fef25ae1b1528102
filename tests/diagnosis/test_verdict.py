import dataclasses
import math

import pytest

import bmlr.methods
from bmlr.diagnosis import IntervalEstimate, Thresholds
from bmlr.diagnosis._judge import Evidence, choose_methods, judge
from bmlr.diagnosis._verdict import Context, write_verdict


def around(value, width=0.03):
    return IntervalEstimate(value, value - width, value + width)


GOOD = Evidence(1000, 0.1, around(0.85), around(0.3), around(1, 0), around(0.9), around(1, 0), around(0.0), around(1))
BEHIND = dataclasses.replace(GOOD, alone=around(0.45), trained_alone=around(0.7), relative_recovery=around(0.6))


def without_reference(evidence, **changes):
    nothing = dict.fromkeys(("trained_alone", "relative_recovery", "encoder_gap", "encoder_fraction"))
    return dataclasses.replace(evidence, **nothing, **changes)


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        (GOOD, ("balanced", "")),
        (BEHIND, ("undertrained", "decision")),
        (dataclasses.replace(BEHIND, encoder_gap=None, encoder_fraction=None), ("undertrained", "")),
        (dataclasses.replace(GOOD, encoder_gap=around(0.1), encoder_fraction=around(0.5)), ("undertrained", "encoder")),
        (dataclasses.replace(GOOD, encoder_gap=around(0.02), encoder_fraction=around(0.5)), ("balanced", "")),
        (dataclasses.replace(GOOD, encoder_gap=around(0.04), encoder_fraction=around(0.5)), ("balanced", "")),
        (dataclasses.replace(GOOD, encoder_gap=around(0.1), encoder_fraction=around(0.9)), ("balanced", "")),
        (dataclasses.replace(GOOD, trained_alone=around(0.11, 0.02)), ("uninformative", "")),
        (dataclasses.replace(BEHIND, trained_alone=around(0.13, 0.05)), ("unclear", "")),
        (dataclasses.replace(BEHIND, relative_recovery=around(0.7, 0.4)), ("unclear", "")),
        (dataclasses.replace(GOOD, relative_recovery=around(0.9, 0.4)), ("unclear", "")),
        (dataclasses.replace(GOOD, relative_recovery=around(0.92, 0.1)), ("balanced", "")),
        (dataclasses.replace(GOOD, relative_recovery=around(0.85, 0.1)), ("undertrained", "decision")),
        (dataclasses.replace(GOOD, relative_recovery=around(0.85, 0.2)), ("unclear", "")),
        (dataclasses.replace(GOOD, relative_recovery=around(math.nan)), ("unclear", "")),
        (dataclasses.replace(BEHIND, samples=99), ("unclear", "")),
        (dataclasses.replace(BEHIND, alone=around(math.nan)), ("unclear", "")),
        (without_reference(GOOD), ("balanced", "")),
        (without_reference(GOOD, balance=around(0.4)), ("weak", "")),
        (without_reference(GOOD, balance=around(0.7, 0.4)), ("unclear", "")),
        (without_reference(GOOD, alone=around(0.1), drop=around(0), balance=around(0)), ("unused", "")),
        (without_reference(GOOD, alone=around(0.1), drop=around(0.2), balance=around(0)), ("weak", "")),
    ],
)
def test_words(evidence, expected):
    assert judge(evidence, Thresholds()) == expected


def test_thresholds_are_parameters():
    assert judge(BEHIND, Thresholds(fraction=0.5)) == ("balanced", "")
    assert judge(dataclasses.replace(GOOD, trained_alone=around(0.11, 0.02)), Thresholds(margin=0.01))[0] == "unclear"
    assert judge(dataclasses.replace(BEHIND, samples=20), Thresholds(min_samples=20))[0] == "undertrained"
    for options, message in (
        ({"fraction": 1.5}, "`fraction` should lie in"),
        ({"margin": -1}, "`margin` should be a non-negative"),
        ({"min_samples": 0}, "`min_samples` should be an integer"),
        ({"n_resamples": 3}, "`n_resamples` should be an integer of at least 100"),
        ({"level": 1.0}, "`level` should lie between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Thresholds(**options)


def verdict_of(evidence, **options):
    return write_verdict(evidence, Thresholds(), Context(around(0.9), 1000, **options))


def test_the_paragraph_names_the_modality_its_numbers_and_what_to_try():
    verdict = verdict_of({"audio": GOOD, "video": BEHIND}, method="Joint")
    assert verdict.undertrained == ("video",)
    text = verdict.paragraph
    assert text.startswith("video is undertrained: alone in the joint model it reaches 45.0 %, trained alone 70.0 %")
    assert "0.60 [0.57, 0.63] of what it recovers for audio" in text
    assert "classifier head" in text
    assert "leave audio out of some training batches" in text
    assert verdict.methods
    assert all(name in text for name in verdict.methods)
    assert "\n" not in text
    mild = dataclasses.replace(BEHIND, relative_recovery=around(0.85))
    paragraph = verdict_of({"audio": GOOD, "video": mild}).paragraph
    assert paragraph.startswith("video is mildly undertrained")
    assert "by the chance of one run: look at other seeds" in paragraph
    assert "look at other seeds" not in text


def test_the_advice_depends_on_the_location_the_method_and_conflict():
    encoder = dataclasses.replace(BEHIND, encoder_gap=around(0.2), encoder_fraction=around(0.4))
    text = verdict_of({"audio": GOOD, "video": encoder}, conflict={"video": -0.2, "audio": 0.4})
    assert text.methods[0] == "MMPareto"
    assert "conflicted (median cosine -0.20)" in text.paragraph
    assert "trained alone, give it a larger learning rate or audio a smaller one" in text.paragraph
    agreed = verdict_of({"audio": GOOD, "video": encoder}, conflict={"video": 0.3})
    assert "agreed (median cosine 0.30)" in agreed.paragraph
    both = verdict_of({"audio": BEHIND, "video": encoder})
    assert both.undertrained == ("audio", "video")


@pytest.mark.parametrize("location", ["encoder", "decision", ""])
@pytest.mark.parametrize("current", ["Joint", "BMLR", "OGMGE", None])
def test_suggested_methods_are_registered_and_applicable(location, current):
    for missing in (False, True):
        methods = choose_methods([location], current=current, missing=missing)
        assert len(methods) == 4
        assert set(methods) <= set(bmlr.methods.available()) - {current}
        assert not (missing and "AGM" in methods)


def test_paragraphs_without_an_undertrained_modality():
    balanced = verdict_of({"audio": GOOD, "video": GOOD})
    assert balanced.paragraph.startswith("No modality is undertrained. Alone in the joint model audio reaches 85.0 %")
    assert "Balancing has little to add" in balanced.paragraph
    # Balanced, but all held back alike: on synthetic data losses of their own then help as well.
    alike = dataclasses.replace(GOOD, alone=around(0.6))
    paragraph = verdict_of({"audio": alike, "video": alike}).paragraph
    assert "a loss of its own for every modality may help all of them" in paragraph
    assert "little to add" not in paragraph
    assert "little to add" in verdict_of({"audio": alike, "video": GOOD}).paragraph
    assert balanced.methods == ()

    nothing = dataclasses.replace(GOOD, trained_alone=around(0.11, 0.02))
    text = verdict_of({"audio": GOOD, "video": nothing}).paragraph
    assert text.startswith("No modality is undertrained. video is uninformative, not undertrained: trained alone it")
    assert "or leave it out" in text
    assert "Worth trying" not in text

    weak = verdict_of({"audio": without_reference(GOOD), "video": without_reference(GOOD, balance=around(0.4))})
    assert "relies little on video" in weak.paragraph
    assert "cannot be told" in weak.paragraph
    assert "`reference`" in weak.paragraph
    assert weak.undertrained == ()
    unused = without_reference(GOOD, alone=around(0.1), drop=around(0), balance=around(0))
    text = verdict_of({"audio": without_reference(GOOD), "video": unused}, can_probe=True).paragraph
    assert "does not use video" in text
    assert "--probe" in text


def test_too_few_samples_are_no_evidence():
    few = {"audio": dataclasses.replace(GOOD, samples=20), "video": dataclasses.replace(BEHIND, samples=20)}
    verdict = write_verdict(few, Thresholds(), Context(around(0.9, 0.1), 20))
    assert verdict.paragraph.startswith("The evidence is insufficient: 20 samples, and a verdict needs 100")
    assert "The multimodal accuracy is 90.0 % [80.0, 100.0]." in verdict.paragraph
    assert verdict.undertrained == ()
    assert "More samples" in verdict.paragraph
    loose = dataclasses.replace(BEHIND, relative_recovery=around(0.7, 0.4))
    assert "known too loosely" in verdict_of({"audio": GOOD, "video": loose}).paragraph
    rare = dataclasses.replace(BEHIND, samples=30)
    assert (
        "The evidence on video is insufficient: 30 samples have it"
        in verdict_of({"audio": GOOD, "video": rare}).paragraph
    )


def test_shuffling_is_warned_of():
    found = {"audio": GOOD, "video": BEHIND}
    assert "Shuffled inputs" in verdict_of(found, shuffled=True).paragraph
    assert "Shuffled inputs" not in verdict_of({"audio": GOOD, "video": GOOD}, shuffled=True).paragraph
