"""Which rows the given settings allow."""
import pytest

from cmr.errors import UsageError
from cmr.experiment import ARMS, rows_to_measure, training_set
from cmr.records import Domain

ALONE = ("baseline", "DA", "DA, averaged", "DA, guided", "DA, guided, averaged")        # of a network on real images
DOMAINS = [Domain.parse(text) for text in ("Vendor=A", "Vendor=B", "Pathology=HCM,DCM")]


def test_rows_follow_from_the_segmenters():
    a, b = "vanilla", "nnunet2d"
    names = lambda *segmenters, inputs="c": [(n, arm.name) for n, arm in rows_to_measure(segmenters, DOMAINS, inputs)]
    assert names(f"{a}-real") == [(a, name) for name in ALONE]
    assert names(f"{a}-real", f"{a}-synthetic", inputs=a) == [
        (a, name) for name in (*ALONE, "matched", "FDA", "DG", "DG + DA")]
    assert names(f"{b}-real", f"{a}-real", f"{a}-shifted") == [
        *((b, name) for name in ALONE), *((a, name) for name in ALONE), (a, "shifted")]
    bounds = [f"{a}-real", f"{a}-Vendor-B", f"{a}-Pathology-HCM+DCM"]
    assert names(*bounds)[-1] == (a, "upper bound")
    with pytest.raises(UsageError, match="vanilla-Vendor-B belongs to no row"):
        names(*bounds[:2])                                        # a bound needs a network of every target
    with pytest.raises(UsageError, match="vanilla-real is missing"):
        names(f"{a}-synthetic")


def test_the_upper_bound_on_the_source_is_the_baseline():
    bound = next(arm for arm in ARMS if arm.name == "upper bound")
    assert [training_set(bound, domain, DOMAINS[0]) for domain in DOMAINS] == ["real", "Vendor-B", "Pathology-HCM+DCM"]
    assert len({arm.name for arm in ARMS}) == len({arm.key for arm in ARMS}) == len(ARMS)
