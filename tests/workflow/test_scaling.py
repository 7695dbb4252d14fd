"""The simulation of many actors: schedules by hand, and a slow second opinion."""

import random

import pandas as pd
import pytest
import scaling


def slowly(shards, starts, serial, ahead):
    """The same schedule without a heap: at every moment, whatever happens first, by looking."""
    left = list(shards)
    waiting = [[] for _ in starts]  # each actor's shards, those at work first
    busy_until = [None] * len(starts)
    at_driver, driver_until, end = [], None, 0.0
    now = 0.0
    while True:
        for actor, start in enumerate(starts):
            places = ahead - len(waiting[actor]) - sum(a == actor for a in at_driver)
            while start <= now and left and places > 0:
                waiting[actor].append(left.pop(0))
                places -= 1
            if waiting[actor] and busy_until[actor] is None:
                busy_until[actor] = now + waiting[actor][0]
        if at_driver and driver_until is None:
            driver_until = now + serial
        to_come = [t for t in [*busy_until, driver_until] if t is not None]
        to_come += [start for start in starts if start > now and left]
        if not to_come:
            return end
        now = min(to_come)
        if driver_until == now:
            at_driver.pop(0)
            driver_until, end = None, now
        for actor, until in enumerate(busy_until):
            if until == now:
                waiting[actor].pop(0)
                busy_until[actor] = None
                at_driver.append(actor)


@pytest.mark.parametrize(
    ("shards", "starts", "serial", "ahead", "end"),
    [
        ([3, 2, 1], [0], 0, 2, 6),
        ([3, 2, 1], [10], 0, 1, 16),
        ([3, 2, 1, 1], [0, 0], 0, 1, 4),  # 3 and 1 here, 2 and 1 there
        ([4, 1, 1, 4], [0, 0], 0, 1, 6),  # the last begins at 2
        ([4, 1, 4, 1], [0, 0], 0, 2, 8),  # the third waits behind the first: it was given ahead
        ([1, 1], [0, 5], 0, 1, 2),  # the second actor comes too late
        ([1, 1, 1], [0], 1, 1, 6),  # an actor without a shard ahead waits for the driver
        ([1, 1, 1], [0], 1, 2, 4),  # with one it need not
        ([1, 1, 1, 1], [0, 0, 0, 0], 2, 1, 9),  # the driver, one after the other, is the limit
        ([], [0, 0], 1, 2, 0),
    ],
)
def test_schedules_by_hand(shards, starts, serial, ahead, end):
    assert scaling.simulate(shards, starts, serial, ahead) == end


def test_a_slow_computation_agrees():
    rng = random.Random(0)
    for _ in range(300):
        shards = [rng.uniform(0.1, 3) for _ in range(rng.randrange(40))]
        starts = [rng.uniform(0, 8) for _ in range(rng.randint(1, 9))]
        serial, ahead = rng.choice([1e-9, 0.05, 0.6]) * rng.uniform(0.5, 1.5), rng.randint(1, 3)
        expected = slowly(shards, starts, serial, ahead)
        assert scaling.simulate(shards, starts, serial, ahead) == pytest.approx(expected, abs=1e-9)


def test_no_schedule_beats_the_sum_of_work_or_the_longest_shard():
    rng = random.Random(1)
    shards = [rng.uniform(1, 2) for _ in range(500)]
    for actors in (1, 7, 64, 500):
        end = scaling.simulate(shards, [3.0] * actors, 0.0)
        assert 3 + max(max(shards), sum(shards) / actors) <= end + 1e-9
        assert end <= 3 + sum(shards) / actors + 2 * max(shards)


@pytest.mark.parametrize(
    ("prompts", "actors", "sizes"),
    [
        (8, 2, {1}),
        (64, 2, {4}),
        (10_000, 1, {64, 16}),  # the last shard has what is left
        (10_000, 64, {19, 6}),
        (10_000, 200, {6, 4}),
    ],
)
def test_prompts_are_grouped_as_the_library_does(prompts, actors, sizes):
    shards = scaling.grouped([1] * prompts, actors)
    assert set(shards) == sizes
    assert sum(shards) == prompts


def test_rates_of_a_run_by_hand():
    def shard(begin, end, *prompts):
        return scaling.Shard(begin, end, pd.Series(1.0, index=list(prompts)))

    shards = [shard(16, 20, "e"), shard(10, 14, "a"), shard(12, 16, "b"), shard(14, 18, "c", "d")]
    found = scaling.told_apart(shards, 2)
    assert [[s.begin for s in own] for own in found] == [[10, 14], [12, 16]]
    run = scaling.Run(25.0, found, 2)
    assert run.start_up == 10
    # Both work from 12 to 18: half of a, all of b, c and d, half of e.
    assert run.rates() == pytest.approx({"whole call": 5 / 25, "begun": 5 / 15, "steady": 4 / 6})


def test_an_actor_that_never_worked_leaves_no_steady_rate():
    shards = [scaling.Shard(t, t + 1, pd.Series([1.0], index=[str(t)])) for t in range(3)]
    run = scaling.Run(3.0, scaling.told_apart(shards, 2), 2)
    assert len(run.actors) == 1
    assert run.rates()["steady"] != run.rates()["steady"]


def test_draws_are_the_measured_times_and_the_gaps_between():
    case = scaling.Case("", "", ["long", "short"])
    own = [
        scaling.Shard(5.0, 9.0, pd.Series([4.0], index=["long"])),
        scaling.Shard(9.5, 11.5, pd.Series([2.0], index=["short"])),
    ]
    times = scaling.drawn(case, [scaling.Run(12.0, [own], 1)], 1, 1, 0.0)
    assert set(times[:, 0]) == {5 + 4.5, 5 + 2.5}
    assert set(times[:, 1]) == {4.5, 2.5}
    again = scaling.drawn(case, [scaling.Run(12.0, [own], 1)], 1, 1, 0.0)
    assert (times == again).all()
