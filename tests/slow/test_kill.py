"""Twenty kills in all phases, at their beginnings and at random moments; tools/soak.py goes on for hours."""

from test_kill import cache, kill, soak, whole  # noqa: F401


def test_killed_twenty_times(cache, tmp_path, whole):  # noqa: F811
    places, hits = kill(cache, tmp_path, 20)
    for place in places:
        assert soak.difference(place, whole) == "", hits
