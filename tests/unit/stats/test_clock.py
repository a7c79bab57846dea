from zos_cri.stats.clock import MIN_WINDOW, Clock, Rate

SECOND = 1_000_000_000


class Hands:
    """A wall clock and a monotonic one that go as they are told."""

    def __init__(self) -> None:
        self.wall = 1_000 * SECOND
        self.monotonic = 5 * SECOND

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.monotonic)

    def pass_(self, ns: int) -> None:
        self.wall += ns
        self.monotonic += ns


def test_it_goes_with_the_wall_clock() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.pass_(SECOND)
    assert clock.now() == 1_001 * SECOND


def test_a_clock_set_back_does_not_stop_it() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.pass_(SECOND)
    before = clock.now()
    hands.wall -= 3600 * SECOND
    hands.pass_(2 * SECOND)
    assert clock.now() - before == 2 * SECOND


def test_a_clock_set_forward_is_followed() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.wall += 3600 * SECOND
    assert clock.now() == 4_600 * SECOND


def test_no_two_times_are_the_same() -> None:
    hands = Hands()
    clock = hands.clock()
    assert clock.now() < clock.now() < clock.now()


def test_a_rate_takes_two_readings() -> None:
    rate = Rate()
    assert rate.update(10 * SECOND, 7 * SECOND) is None
    assert rate.update(12 * SECOND, 8 * SECOND) == SECOND // 2
    assert rate.update(14 * SECOND, 8 * SECOND) == 0


def test_readings_close_together_leave_it_as_it_was() -> None:
    rate = Rate()
    rate.update(0, 0)
    assert rate.update(MIN_WINDOW - 1, SECOND) is None
    assert rate.update(SECOND, SECOND) == SECOND
    assert rate.update(SECOND + 1, 5 * SECOND) == SECOND
    # the window goes back to the reading that the rate was made of
    assert rate.update(2 * SECOND, 2 * SECOND) == SECOND


def test_a_counter_that_began_anew_has_no_rate_yet() -> None:
    rate = Rate()
    rate.update(0, 100 * SECOND)
    assert rate.update(SECOND, SECOND) is None
    assert rate.update(2 * SECOND, 3 * SECOND) == 2 * SECOND
