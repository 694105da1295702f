"""The table over training seeds."""
from cmr.seed_spread import seed_spread


def test_spread_is_over_seeds_of_the_mean_over_patients():
    def row(subject, arm, dice, role="target", domain="Vendor=B"):
        return {"domain": domain, "role": role, "subject": subject, "network": "vanilla", "arm": arm, "status": "ok",
                "dice": dice, "hd95": 10 - 10 * dice, "assd": 1.0, "hd95_in_plane": 2.0}
    tables = [
        [row("p", "baseline", 0.6), row("q", "baseline", 0.8), row("p", "DA", 0.7 + s), row("q", "DA", 0.9 + s)]
        for s in (0.0, 0.02)
    ]
    lines = [line.split(" | ") for line in seed_spread(tables)[2:]]
    assert [line[0].strip("| ") for line in lines] == ["all targets", "all targets", "Vendor=B", "Vendor=B"]
    assert lines[3][2:5] == ["DA", "0.810 ± 0.014", "+0.110 ± 0.014"]
    assert lines[3][5:7] == ["1.9 ± 0.1", "-1.1 ± 0.1"] and lines[3][-1] == "2 of 2 |"
    assert lines[2][2:5] == ["baseline", "0.700 ± 0.000", "-"]
