"""Several processes: a run on more ways between machines, and an evaluation by two processes."""

from test_processes import EVALUATE, check_measured, check_same, measured, place, start, train, whole

__all__ = ["measured", "place", "whole"]  # fixtures


def test_a_run_moves_between_one_and_two_processes(place, whole):
    """Each leg goes on with what another number of devices or processes has saved."""
    legs = [(1, 2), (8, 1), (4, 1), (1, 1), (1, 2)]
    for steps, (devices, processes) in enumerate(legs, 2):
        train(place, "moved", steps=steps, devices=devices, processes=processes)
    check_same(place / "moved", whole / "six_steps")


def test_two_processes_evaluate_as_one(place, measured):
    check_measured(measured, start(["-c", EVALUATE, str(place)], 2, 2), ["4", "4"])
