//! Whether to wait for the next packet with open eyes.
//!
//! Waking a thread that sleeps takes longer than everything else that happens to a packet: tens of microseconds on a
//! virtual machine. So a worker that has run out of work looks again for a short window before it sleeps. That pays
//! only if something comes within the window, and it is paid in processor time:
//!
//! - looking in vain is paid from an allowance, which grows by [`ALLOWANCE`] of the time that passes: however sparse
//!   the traffic, no more than that of one processor is wasted;
//! - where packet after packet came within the window, one that is late is waited for [`PATIENCE`] times as long: a tick of
//!   the clock or a neighbour has held up whoever sends it, and to sleep then takes longer than to wait;
//! - what strangers send is dealt with as it comes, and prolongs no window: nobody without a session makes it look;
//! - it is given up where less than two of three windows bring something, for [`PAUSE`] at first and for twice as long each
//!   time again; and taken up before when [`STREAM`] packets in a row wake the worker so soon that it would have met them;
//! - so it is when others want the processor: a worker lets them go first while it looks, and one that gets it back only
//!   after [`AWAY_TIME`] would have been woken sooner than that; for [`PAUSE`] at first, for up to [`AWAY_PAUSE_MAX`] while
//!   they do;
//! - a worker that sleeps does not wake up for it: without traffic it costs nothing.

use std::time::Duration;

use super::absence::Absences;
use crate::proto::time::Instant;

/// How long a worker looks before it sleeps, if nothing else is said: about what a round trip on a virtual machine takes
/// when nobody sleeps, and half of it again.
pub(super) const WINDOW: Duration = Duration::from_micros(100);

/// The longest window that can be asked for; beyond it a sleep costs less than the waiting.
pub const WINDOW_MAX: Duration = Duration::from_millis(1);

/// As many packets in a row that came within the window make a stream ...
const STREAM: u32 = 32;

/// ... whose next packet is waited for as many windows.
const PATIENCE: u32 = 3;

/// What may be wasted: one part in this many of one processor's time.
const ALLOWANCE: u32 = 4;

/// Windows that the allowance can hold: how much may be wasted at once after a quiet time.
const SAVED_MAX: u32 = 8;

/// A packet that came within the window makes up for one part in this many of a window without one.
const MISS_WEIGHT: u32 = 2;

/// As many windows that nothing makes up for, and it is given up ...
const MISSES_MAX: u32 = 16 * MISS_WEIGHT;

/// ... for this long at first, as what comes next may be of another kind ...
const PAUSE: Duration = Duration::from_millis(50);

/// ... and for this long if it never is.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Longer than who waits for a packet keeps the processor, shorter than who is busy does.
const AWAY_TIME: Duration = Duration::from_micros(200);

/// For how long it is given up at most while others stay busy, as each trial costs the time of some absences. Longer brought
/// no more (docs/performance.md).
const AWAY_PAUSE_MAX: Duration = Duration::from_millis(200);

/// One worker's habit of looking before it sleeps.
#[derive(Debug)]
pub(super) struct Spin {
    /// How long it looks; zero for never.
    window: Duration,
    /// What may still be wasted.
    allowance: Duration,
    /// Until when the allowance has been credited.
    credited: Instant,
    /// When the window began that is open.
    began: Option<Instant>,
    /// When one would have begun.
    slept: Option<Instant>,
    /// Packets in a row that came within a window, or would have.
    hits: u32,
    /// Windows without a packet that nothing has made up for yet, each of [`MISS_WEIGHT`].
    misses: u32,
    /// For how long it will be given up.
    pause: Duration,
    given_up_until: Instant,
    absences: Absences,
}

impl Spin {
    /// Looks for `window` at a time, [`WINDOW_MAX`] at most; zero turns it off.
    pub(super) fn new(window: Duration) -> Self {
        let (never, none) = (Instant::default(), Duration::ZERO);
        let window = window.min(WINDOW_MAX);
        Self {
            window,
            allowance: none,
            credited: never,
            began: None,
            slept: None,
            hits: 0,
            misses: 0,
            pause: PAUSE,
            given_up_until: never,
            absences: Absences::new(AWAY_TIME, PAUSE..=AWAY_PAUSE_MAX),
        }
    }

    /// Until when to look; `None` to sleep at once. A window that is open already goes on.
    pub(super) fn until(&mut self, now: Instant) -> Option<Instant> {
        let earned = now.since(self.credited) / ALLOWANCE;
        self.credited = now;
        self.allowance = (self.allowance + earned).min(self.window * SAVED_MAX);
        let may = !self.window.is_zero() && self.absences.allowed(now) && now >= self.given_up_until;
        if self.began.is_none() && may && self.allowance >= self.window {
            self.began = Some(now);
        }
        if self.began.is_none() {
            self.slept.get_or_insert(now);
        }
        let patient = self.window * PATIENCE;
        let window = if self.hits >= STREAM && self.allowance >= patient { patient } else { self.window };
        self.began.map(|began| began + window)
    }

    /// At `now` something came that was worth it.
    pub(super) fn hit(&mut self, now: Instant) {
        let slept = self.slept.take();
        if self.began.take().is_some() || slept.is_some_and(|slept| now.since(slept) <= self.window) {
            self.hits = (self.hits + 1).min(STREAM);
            self.misses = self.misses.saturating_sub(1);
        } else if slept.is_some() {
            self.hits = 0;
        }
        if self.hits == STREAM {
            (self.pause, self.given_up_until) = (PAUSE, Instant::default());
        }
    }

    /// It looked, and something came.
    pub(super) fn met(&mut self) {
        self.absences.made_up();
    }

    /// It let others go first, from `left` to `back`.
    pub(super) fn came_back(&mut self, left: Instant, back: Instant) {
        self.absences.came_back(left, back);
    }

    /// Nothing came until `now`, when the window is over.
    pub(super) fn missed(&mut self, now: Instant) {
        let spent = self.began.take().map_or(Duration::ZERO, |began| now.since(began));
        self.allowance = self.allowance.saturating_sub(spent);
        self.hits = 0;
        self.misses += MISS_WEIGHT;
        if self.misses >= MISSES_MAX {
            self.misses = 0;
            self.given_up_until = now + self.pause;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Packets at equal distances for a second; returns what was wasted, and how many were met with open eyes.
    fn traffic(spin: &mut Spin, gap: Duration) -> (Duration, u32) {
        let mut now = Instant::default() + SECOND;
        let end = now + SECOND;
        let (mut wasted, mut met) = (Duration::ZERO, 0);
        while now < end {
            let next = now + gap;
            match spin.until(now) {
                Some(until) if next <= until => met += 1,
                Some(until) => {
                    spin.missed(until);
                    wasted += until.since(now);
                }
                None => {}
            }
            spin.hit(next);
            now = next;
        }
        (wasted, met)
    }

    #[test]
    fn what_comes_soon_is_met() {
        let (wasted, met) = traffic(&mut Spin::new(WINDOW), Duration::from_micros(50));
        assert_eq!((wasted, met), (Duration::ZERO, 20_000));
    }

    #[test]
    fn sparse_traffic_wastes_no_more_than_the_allowance() {
        for gap in [101, 110, 150, 200, 240, 300, 400, 500, 1000, 10_000] {
            let (wasted, met) = traffic(&mut Spin::new(WINDOW), Duration::from_micros(gap));
            assert!(wasted <= SECOND / ALLOWANCE, "{gap} µs: {wasted:?}");
            assert_eq!(met, 0);
        }
        // At such a rate it never pays, and is given up for longer and longer.
        assert!(traffic(&mut Spin::new(WINDOW), Duration::from_micros(200)).0 < SECOND / 50);
    }

    /// Of two packets one comes soon: the answer, and not the next question.
    #[test]
    fn it_is_given_up_where_every_second_window_is_in_vain() {
        let looks = |answers: usize| {
            let mut spin = Spin::new(WINDOW);
            let mut now = Instant::default() + SECOND;
            let mut looked = 0;
            let gaps = [WINDOW / 2].into_iter().cycle().take(answers).chain([WINDOW * 9]);
            for gap in gaps.cycle().take((answers + 1) * 10_000) {
                if let Some(until) = spin.until(now) {
                    looked += 1;
                    if now + gap > until {
                        spin.missed(until);
                    }
                }
                now = now + gap;
                spin.hit(now);
            }
            looked as f64 / ((answers + 1) * 10_000) as f64
        };
        assert!(looks(1) < 0.1, "{}", looks(1));
        assert!(looks(3) > 0.9, "{}", looks(3));
    }

    /// Who sleeps because it did not pay, and is woken as soon as it would have met the packet, looks again.
    #[test]
    fn it_is_taken_up_again_when_it_would_pay() {
        let given_up = || {
            let (mut spin, mut now) = (Spin::new(WINDOW), Instant::default() + SECOND);
            for _ in 0..10_000 {
                if let Some(until) = spin.until(now) {
                    spin.missed(until);
                }
                now = now + WINDOW * 10;
                spin.hit(now);
            }
            assert!(spin.given_up_until > now + PAUSE_MAX / 8, "given up for long by now");
            (spin, now)
        };
        let sleep = |spin: &mut Spin, now: &mut Instant, gap| {
            assert_eq!(spin.until(*now), None);
            *now = *now + gap;
            spin.hit(*now);
        };
        let (mut spin, mut now) = given_up();
        (0..STREAM).for_each(|_| sleep(&mut spin, &mut now, WINDOW));
        assert!(spin.until(now).is_some());
        assert_eq!(spin.pause, PAUSE);

        let (mut spin, mut now) = given_up();
        for _ in 0..STREAM {
            (1..STREAM).for_each(|_| sleep(&mut spin, &mut now, WINDOW));
            sleep(&mut spin, &mut now, WINDOW * 2);
        }
    }

    /// Strangers that never pause do not keep it awake: it looks through one window after the other, as long as the
    /// allowance lasts, until it is given up.
    #[test]
    fn strangers_do_not_prolong_a_window() {
        let mut spin = Spin::new(WINDOW);
        let (start, gap) = (Instant::default() + SECOND, Duration::from_micros(10));
        let (mut now, mut awake) = (start, Duration::ZERO);
        while now < start + SECOND {
            let looking = spin.until(now);
            now = now + gap;
            match looking {
                Some(until) if now >= until => spin.missed(now),
                _ => {}
            }
            awake += looking.map_or(Duration::ZERO, |_| gap);
        }
        assert!(awake <= SECOND / ALLOWANCE + WINDOW * SAVED_MAX, "{awake:?}");
        // And whoever has a session is met again, if what they send comes soon.
        for _ in 0..=STREAM {
            spin.until(now);
            now = now + WINDOW / 2;
            spin.hit(now);
        }
        assert!(spin.until(now).is_some());
    }

    /// A machine that stops now and then is none whose processors are wanted by others.
    #[test]
    fn it_is_given_up_where_others_are_busy() {
        let given_up = |absences: u32, prompt: u32| {
            let mut spin = Spin::new(WINDOW);
            let mut now = Instant::default() + SECOND;
            let mut looked = 0;
            for _ in 0..absences {
                looked += u32::from(spin.until(now).is_some());
                let back = now + AWAY_TIME;
                spin.came_back(now, back);
                spin.hit(back);
                for _ in 0..prompt {
                    spin.came_back(back, back + AWAY_TIME / 2);
                    spin.met();
                }
                now = back;
            }
            looked < absences
        };
        assert!(given_up(20, 0) && given_up(100, 4));
        assert!(!given_up(7, 0) && !given_up(10_000, 8));
    }

    /// The longer others stay busy, the more seldom it is tried; after a good time it begins anew.
    #[test]
    fn it_is_tried_seldom_while_others_stay_busy() {
        let mut spin = Spin::new(WINDOW);
        let mut trials = |now: &mut Instant, time: Duration, away: Duration| {
            let (end, mut trials, mut looked) = (*now + time, 0, false);
            while *now < end {
                let looks = spin.until(*now).is_some();
                trials += u32::from(looks && !looked);
                looked = looks;
                if looks {
                    spin.came_back(*now, *now + away);
                    if away < AWAY_TIME {
                        spin.met();
                    }
                }
                *now = *now + away;
                spin.hit(*now);
            }
            trials
        };
        let mut now = Instant::default() + SECOND;
        let busy = AWAY_TIME * 5;
        let seldom = 1 + (SECOND * 10).div_duration_f64(AWAY_PAUSE_MAX) as u32;
        let made = trials(&mut now, SECOND * 10, busy);
        assert!((seldom / 2..=seldom + 2).contains(&made), "{made}");
        trials(&mut now, SECOND, WINDOW / 2);
        let made = trials(&mut now, PAUSE * 2, busy);
        assert_eq!(made, 2, "it begins anew");
    }

    /// What is late is waited for after a stream, and not otherwise; and streams that end waste no more than others.
    #[test]
    fn a_stream_is_waited_for() {
        let mut spin = Spin::new(WINDOW);
        let start = Instant::default() + SECOND;
        let mut until = |now: Instant, hits: u32| {
            for _ in 0..hits {
                spin.until(now).expect("it is worth it");
                spin.hit(now);
            }
            let until = spin.until(now).expect("it is worth it");
            spin.missed(until);
            until.since(now)
        };
        assert_eq!(until(start, STREAM - 1), WINDOW);
        assert_eq!(until(start + SECOND, STREAM), WINDOW * PATIENCE);
        assert_eq!(until(start + SECOND * 2, 0), WINDOW, "the stream is over");

        let (mut now, mut wasted, mut patient) = (start, Duration::ZERO, 0);
        let mut spin = Spin::new(WINDOW);
        while now < start + SECOND {
            for _ in 0..STREAM {
                spin.until(now);
                spin.hit(now);
            }
            if let Some(until) = spin.until(now) {
                spin.missed(until);
                wasted += until.since(now);
                patient += u32::from(until.since(now) > WINDOW);
            }
            now = now + Duration::from_micros(400);
        }
        assert!(wasted <= SECOND / ALLOWANCE + WINDOW * SAVED_MAX, "{wasted:?}");
        assert_ne!(patient, 0);
    }

    #[test]
    fn zero_turns_it_off() {
        assert_eq!(traffic(&mut Spin::new(Duration::ZERO), Duration::from_micros(1)), (Duration::ZERO, 0));
    }
}
