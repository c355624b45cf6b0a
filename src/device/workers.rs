//! Which thread runs which stage.
//!
//! A [`Lane`] is one queue of the TUN and one receiver of the sockets. A worker that has a lane waits for its two
//! sources, and runs both directions inline: the thread that reads a packet also seals and sends it, so no packet
//! waits for a thread to wake up. It takes turns: a batch from the TUN, a batch from the sockets, until both have
//! nothing more; then it looks again for a moment ([`Spin`]), and only then sleeps. It never waits for the control
//! thread. As long as there is more, others on its processor go first between two rounds, if they give it back
//! ([`Absences`]).
//!
//! # Help
//! While one worker is enough the others sleep. When a lane has had more than its worker could do for
//! [`super::stretch::STRETCH`], another one is woken, and both take batches from the same lane: reading takes turns, sealing and
//! opening run side by side, and what leaves, leaves in order ([`super::ordered`]). Whether there is a processor to
//! spare is told by the time that a busy thread gets: if it is less than what passed, others want the processors, too.
//! Nobody calls for help then, and a helper that notices it goes back to sleep, for [`HELP_BACKOFF`] at first.

use std::hint;
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::Shared;
use super::absence::Absences;
use super::batch::{InboundBatch, OutboundBatch};
use super::builder::CloseReason;
use super::company::Company;
use super::pool::Pool;
use super::precedence::Precedence;
use super::receive::Inbound;
use super::send::Outbound;
use super::signal::Signal;
use super::spin::Spin;
use super::stretch::Stretches;
use super::time::{self, now};
use super::watch::{Source, Watch};
use crate::proto::time::Instant;
use crate::sys::poll::Poll;
use crate::sys::thread;
use crate::tun::{TunQueue, Wake};

/// Peers flushed before the worker turns to packets again.
const FLUSHES_PER_TURN: usize = 64;
/// For how long a direction that has more is served before the other one is looked at. Shorter costs throughput, as the
/// acknowledgements of bulk traffic come in smaller batches; longer adds to the latency of what comes the other way.
const QUANTUM: Duration = Duration::from_micros(200);

/// Others that go first between two rounds and keep the processor for longer are busy: those who wait for packets need
/// some hundred microseconds for all that the last round brought them.
const AWAY_TIME: Duration = Duration::from_millis(1);
/// For how long nobody goes first then; twice as long each time that it happens again ...
const AWAY_PAUSE: Duration = Duration::from_millis(250);
/// ... up to this.
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Stretches in a row in which a helper has company before it concludes that there is no processor to spare: the system
/// may take some time to find it one.
const COMPANY_MAX: u32 = 3;
/// A helper that finds nothing to do for so long goes back to sleep.
const HELP_PATIENCE: Duration = Duration::from_micros(200);
/// For how long nobody calls for help after a helper was in the way; twice as long each time that it happens again ...
const HELP_BACKOFF: Duration = Duration::from_millis(100);
/// ... up to this.
const HELP_BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Batches of each direction for each worker: the one in hand, and one that waits for an earlier one.
pub(crate) const BATCHES_PER_WORKER: usize = 2;

/// One queue of the TUN and one receiver of the sockets.
pub(crate) struct Lane {
    outbound: Outbound,
    inbound: Inbound,
    /// Its worker cannot do all the work.
    backlog: AtomicBool,
}

impl Lane {
    /// This source has something.
    fn may_have(&self, source: Source) {
        match source {
            Source::Tun => self.outbound.ready.store(true, Ordering::SeqCst),
            Source::Socket(place) => self.inbound.source_ready(place),
        }
    }

    fn is_ready(&self) -> bool {
        self.outbound.ready.load(Ordering::SeqCst) || self.inbound.ready.load(Ordering::SeqCst)
    }
}

/// What the workers share.
pub(crate) struct Crew {
    pub(crate) shared: Arc<Shared>,
    /// Each is the worker's of the same number.
    lanes: Vec<Lane>,
    /// Batches on the way out.
    pub(crate) outbound: Pool<OutboundBatch>,
    /// Batches on the way in.
    pub(crate) inbound: Pool<InboundBatch>,
    /// Until then nobody calls for help; nanoseconds as [`Instant`].
    no_help_until: AtomicU64,
}

/// What came of a turn at a queue.
pub(crate) enum Turn {
    /// There was nothing.
    Nothing,
    /// Others are at it.
    Busy,
    /// Something was done. `more`: there is more. `useful`: it was for somebody here.
    Worked { more: bool, useful: bool },
    /// The interface is gone.
    Gone(io::Error),
}

/// Why a worker cannot go on.
enum Stopped {
    /// The interface is gone.
    TunGone(io::Error),
    /// The system does not say what is ready.
    Failed(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// What came of a turn in each direction.
#[derive(Default)]
struct Round {
    worked: bool,
    /// Not only for strangers.
    useful: bool,
    busy: bool,
    more: bool,
    /// The last of it was on the way out.
    went_out: bool,
}

impl Round {
    /// Takes turns from `start` on until there is nothing more, or `quantum` is used up. Returns when it ended.
    fn take_turns(
        &mut self,
        start: Instant,
        quantum: Duration,
        mut turn: impl FnMut(Instant) -> Turn,
    ) -> Result<Instant, Stopped> {
        let mut now = start;
        loop {
            match turn(now) {
                Turn::Nothing => return Ok(now),
                Turn::Busy => {
                    self.busy = true;
                    return Ok(now);
                }
                Turn::Gone(error) => return Err(Stopped::TunGone(error)),
                Turn::Worked { more, useful } => {
                    self.worked = true;
                    self.useful |= useful;
                    if !more {
                        return Ok(time::now());
                    }
                }
            }
            now = time::now();
            if now.since(start) >= quantum {
                self.more = true;
                return Ok(now);
            }
        }
    }
}

impl Crew {
    /// As many lanes as the interface has queues, at most one for each worker.
    pub(crate) fn new(shared: Arc<Shared>, queues: Vec<TunQueue>) -> Self {
        let batches = shared.workers.len() * BATCHES_PER_WORKER;
        let lanes = queues.into_iter().enumerate().map(|(number, queue)| Lane {
            outbound: Outbound::new(number, queue.receiver, batches),
            inbound: Inbound::new(queue.sender, batches),
            backlog: AtomicBool::new(false),
        });
        Self {
            lanes: lanes.collect(),
            outbound: Pool::new(shared.workers.len(), BATCHES_PER_WORKER, OutboundBatch::new),
            inbound: Pool::new(shared.workers.len(), BATCHES_PER_WORKER, InboundBatch::new),
            no_help_until: AtomicU64::new(0),
            shared,
        }
    }

    /// How a source without a file descriptor says that there is something.
    fn wake(self: &Arc<Self>, lane: usize, ready: fn(&Lane) -> &AtomicBool) -> Wake {
        let crew = Arc::downgrade(self);
        Arc::new(move || {
            if let Some(crew) = crew.upgrade() {
                ready(&crew.lanes[lane]).store(true, Ordering::SeqCst);
                crew.shared.workers[lane].wake();
            }
        })
    }

    /// Wakes one worker that sleeps, if there is one.
    fn call(&self) {
        if let Some(sleeper) = self.shared.workers.iter().find(|worker| worker.is_asleep()) {
            sleeper.wake();
        }
    }
}

/// A thread that moves packets.
pub(crate) struct Worker {
    crew: Arc<Crew>,
    /// Its lane's number, if there are that many; otherwise it only helps.
    number: usize,
    watch: Watch,
    epoch: u64,
    spin: Spin,
    stretches: Stretches,
    absences: Absences,
    /// `None` where it may not move.
    company: Option<Company>,
    /// Stretches in a row in which this helper had company.
    in_company: u32,
    backoff: Duration,
}

impl Worker {
    pub(crate) fn new(crew: Arc<Crew>, number: usize, poll: Poll, spin: Duration) -> Self {
        Self {
            crew,
            number,
            watch: Watch::new(poll),
            epoch: 0,
            spin: Spin::new(spin),
            stretches: Stretches::default(),
            absences: Absences::new(AWAY_TIME, AWAY_PAUSE..=AWAY_PAUSE_MAX),
            company: Some(Company::new()),
            in_company: 0,
            backoff: HELP_BACKOFF,
        }
    }

    /// Runs until the device closes, and says why it did.
    pub(crate) fn run(self) -> io::Result<CloseReason> {
        match self.run_until_stopped() {
            Ok(()) => Ok(CloseReason::Requested),
            Err(Stopped::TunGone(error)) => {
                tracing::debug!("The TUN is gone: {error}");
                Ok(CloseReason::TunDeleted)
            }
            Err(Stopped::Failed(error)) => Err(error),
        }
    }

    fn run_until_stopped(mut self) -> Result<(), Stopped> {
        let crew = self.crew.clone();
        let (signal, lane) = (&crew.shared.workers[self.number], crew.lanes.get(self.number));
        if let Some(lane) = lane {
            let wake = crew.wake(self.number, |lane| &lane.outbound.ready);
            self.watch.set_tun(lane.outbound.readiness(wake));
        }
        // Others than those that have a lane only help where there is much to do.
        let mut precedence = Precedence::new(thread::policy().filter(|_| lane.is_some()), thread::set_policy);
        let mut now = time::now();
        loop {
            signal.acknowledge();
            if crew.shared.closing.load(Ordering::Acquire) {
                return Ok(());
            }
            if let Some(lane) = lane
                && crew.shared.sockets_changed(self.epoch)
            {
                self.change_sockets(lane)?;
            }
            if self.number == 0 {
                self.flush_wanted();
            }
            now = self.work(&crew, lane, signal, now)?;
            self.stretches.end();
            let may_sleep = signal.may_sleep(|| lane.is_some_and(Lane::is_ready));
            self.wait(lane, if may_sleep { precedence.sleeps(now) } else { Some(Duration::ZERO) })?;
            signal.awake();
            now = time::now();
            precedence.woke(now);
        }
    }

    /// Works from `now` on until there is nothing left to do, or it is signalled. Returns when that was.
    fn work(
        &mut self,
        crew: &Crew,
        home: Option<&Lane>,
        signal: &Signal,
        mut now: Instant,
    ) -> Result<Instant, Stopped> {
        let mut patient_until = None;
        // Whether the next packet is looked for.
        let mut looking = false;
        while !signal.is_signalled() {
            let (mut round, mut end) = (Round::default(), now);
            if let Some(lane) = home {
                (round, end) = run_round(crew, self.number, lane, now)?;
                // While a helper is at the entry nobody can tell.
                if !round.busy && round.more != lane.backlog.load(Ordering::Relaxed) {
                    lane.backlog.store(round.more, Ordering::Relaxed);
                }
                if round.more {
                    self.let_others_go_first(end);
                    // What the one direction brings must be seen while the other one never ends.
                    self.wait(Some(lane), Some(Duration::ZERO))?;
                }
            }
            let helped = !round.more && self.help(end)?;
            if round.useful {
                self.spin.hit(now);
            }
            if round.worked || helped {
                if mem::take(&mut looking) {
                    self.spin.met();
                }
                patient_until = None;
                self.watch.moved(round.went_out);
                if self.is_in_the_way(now, round.more) {
                    return Ok(end);
                }
            }
            now = match home {
                Some(lane) if !(helped || round.more || round.busy) => {
                    looking = true;
                    let back = match self.look_again(lane, end)? {
                        None if round.useful && !round.went_out => self.await_answer(lane, end),
                        back => back,
                    };
                    let Some(back) = back else { return Ok(end) };
                    back
                }
                None if !helped && now >= *patient_until.get_or_insert(now + HELP_PATIENCE) => return Ok(now),
                _ => {
                    if !(helped || round.more) {
                        hint::spin_loop();
                    }
                    time::now()
                }
            };
        }
        if looking {
            self.spin.hit(now);
        }
        Ok(now)
    }

    /// One round at the first other lane that has a backlog. False when there was nothing to help with.
    fn help(&self, now: Instant) -> Result<bool, Stopped> {
        for (number, lane) in self.crew.lanes.iter().enumerate() {
            if number == self.number || !lane.backlog.load(Ordering::Relaxed) {
                continue;
            }
            let (round, _) = run_round(&self.crew, self.number, lane, now)?;
            let worker = &self.crew.shared.workers[number];
            if round.more && worker.is_asleep() {
                worker.wake();
            }
            if round.worked {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Looks back on each stretch of work. A worker that has more to do, and its processor for itself, calls for help.
    /// True for a helper that has company: it had better sleep.
    fn is_in_the_way(&mut self, now: Instant, more: bool) -> bool {
        let Some(alone) = self.stretches.at_work(now, thread::processor_nanos) else { return false };
        if self.number < self.crew.lanes.len() {
            if alone && more && now.as_nanos() >= self.crew.no_help_until.load(Ordering::Relaxed) {
                self.crew.call();
            }
            return false;
        }
        if alone {
            (self.in_company, self.backoff) = (0, HELP_BACKOFF);
            return false;
        }
        self.in_company += 1;
        if self.in_company < COMPANY_MAX {
            return false;
        }
        self.in_company = 0;
        self.crew.no_help_until.store((now + self.backoff).as_nanos(), Ordering::Relaxed);
        self.backoff = (self.backoff * 2).min(HELP_BACKOFF_MAX);
        true
    }

    /// Between two rounds. The other end of the tunnel, or whoever the packets are for, may be waiting for this very
    /// processor while their buffers fill. Returns when they had their turn; `None` if they get none.
    fn let_others_go_first(&mut self, now: Instant) -> Option<Instant> {
        if !self.absences.allowed(now) {
            return None;
        }
        std::thread::yield_now();
        let back = time::now();
        if !self.absences.came_back(now, back) {
            self.absences.made_up();
        }
        Some(back)
    }

    /// Before the thread sleeps after a packet that came in, where one that goes out follows. Who answers it may be waiting for
    /// this very processor, and has done so by the time it waits again; then neither of the two need be woken. Returns when
    /// to ask for the answer; `None` if it is not to be expected.
    fn await_answer(&mut self, lane: &Lane, now: Instant) -> Option<Instant> {
        if !self.watch.expects_answer() {
            return None;
        }
        let back = self.let_others_go_first(now)?;
        lane.may_have(Source::Tun);
        Some(back)
    }

    /// Before the thread sleeps, for a moment: chooses which sources are asked next. Returns when; `None` when it had
    /// better sleep.
    fn look_again(&mut self, lane: &Lane, now: Instant) -> io::Result<Option<Instant>> {
        let Some(until) = self.spin.until(now) else { return Ok(None) };
        if now >= until {
            self.spin.missed(now);
            return Ok(None);
        }
        let others_first = self.watch.others_go_first();
        if others_first {
            std::thread::yield_now();
        }
        let back = time::now();
        self.spin.came_back(now, back);
        if others_first && self.watch.awaits_answer() {
            self.leave_company(now, back);
        }
        self.watch.guess(|source| lane.may_have(source))?;
        Ok(Some(back))
    }

    /// Others went first from `left` to `back` while an answer was awaited. Moves to another processor if somebody is on this
    /// one all the time.
    fn leave_company(&mut self, left: Instant, back: Instant) {
        if self.company.as_mut().is_some_and(|company| company.came_back(left, back))
            && let Err(error) = thread::change_processor()
        {
            tracing::debug!(%error, "worker {} stays on its processor", self.number);
            self.company = None;
        }
    }

    /// Waits for the sources, as long as said.
    fn wait(&mut self, lane: Option<&Lane>, timeout: Option<Duration>) -> io::Result<()> {
        self.watch.wait(timeout, |source| lane.into_iter().for_each(|lane| lane.may_have(source)))
    }

    /// Drops the old receiver and sender before it takes the new ones: their port may be wanted again.
    fn change_sockets(&mut self, lane: &Lane) -> io::Result<()> {
        self.watch.set_sockets(Vec::new())?;
        let wake = self.crew.wake(self.number, |lane| &lane.inbound.ready);
        lane.inbound.replace_receiver(None, wake.clone());
        lane.outbound.replace_sender(&self.crew, None);
        if let Some(queue) = self.crew.shared.take_worker_queue(self.number, &mut self.epoch) {
            lane.outbound.replace_sender(&self.crew, Some(queue.sender));
            self.watch.set_sockets(lane.inbound.replace_receiver(queue.receiver, wake))?;
        }
        Ok(())
    }

    fn flush_wanted(&self) {
        for _ in 0..FLUSHES_PER_TURN {
            let Some(peer) = self.crew.shared.flushes.pop() else { return };
            if peer.take_flush() {
                for lane in peer.lanes_waiting() {
                    let Lane { outbound, inbound, .. } = &self.crew.lanes[lane];
                    outbound.flush(&self.crew, self.number, inbound, &peer, now());
                }
            }
        }
        self.crew.shared.workers[self.number].wake();
    }
}

/// Turns in each direction of a lane, until there is nothing more or the direction has had its time. Returns what came
/// of them, and when they ended.
fn run_round(crew: &Crew, worker: usize, lane: &Lane, start: Instant) -> Result<(Round, Instant), Stopped> {
    let mut round = Round::default();
    let inbound_end = round.take_turns(start, QUANTUM, |now| lane.inbound.turn(crew, worker, now))?;
    let quantum = inbound_end.since(start).max(QUANTUM);
    let came_in = mem::take(&mut round.worked);
    let end = round.take_turns(inbound_end, quantum, |now| lane.outbound.turn(crew, worker, &lane.inbound, now))?;
    round.went_out = round.worked;
    round.worked |= came_in;
    Ok((round, end))
}
