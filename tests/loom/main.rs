//! What the threads of a device share, in every order of events.
//!
//! The files below `src` are the library's own. They take locks, atomics and the like from `crate::sync`; there it is
//! std's, here it is [loom](https://docs.rs/loom)'s. A model is a few threads that use them. Loom runs it again and again:
//! each time with another order of their steps, and with another of the values that C11's memory model lets a load see,
//! until it has had all; a run that breaks an assertion, panics, or ends in a deadlock, fails the model.
//!
//! Bounds: a thread is interrupted at most [`PREEMPTIONS`] times in a run where it could have gone on; how often threads
//! change places because one waits or ends is not bounded, nor which values they see. `LOOM_MAX_PREEMPTIONS` sets another
//! bound: `make loom`.
//!
//! Where loom is not exact: it allows more than the memory model does for accesses that are SeqCst, which count as AcqRel, so
//! what needs them has fences; and for a store, which may come to lie before a read-modify-write of another thread that has not
//! seen it. Models keep clear of both. And it may leave out what another thread does between a load and a store of one thread, as
//! it remembers one access of each atomic; `sync.rs` makes up for that where pointers are swapped and locks tried.
//!
//! There is no test harness: with one, the files' own tests would run here, too, and fail outside of a model. Arguments are
//! as usual: parts of names; options are not looked at.

// The models use a part of the files, and nobody what their tests use.
#![allow(unused, unreachable_pub)]

extern crate alloc;

mod appointments;
mod counters;
mod indices;
mod lane;
mod sessions;
mod signals;
mod staged;
mod sync;

// Clippy looks at them where they belong.
#[allow(clippy::all)]
#[path = "../../src"]
mod library {
    pub(crate) mod ip;
    pub(crate) mod key;
    pub(crate) mod proto;

    pub(crate) mod device {
        pub(crate) use adit::device::THREADS_MAX;

        pub(crate) mod inbox;
        pub(crate) mod lookup;
        pub(crate) mod ordered;
        pub(crate) mod peer;
        pub(crate) mod pool;
        pub(crate) mod signal;
    }
}

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use adit::udp;
use library::{device, ip, key, proto};

/// What is broken on purpose in tests/mutants.txt needs no more, but for one model that has a bound of its own; all models together are done within seconds, and within a minute
/// with one more.
const PREEMPTIONS: usize = 2;

/// Models that run at once; each is one thread.
const AT_ONCE: usize = 2;

/// A model, by the name of its function.
type Model = (&'static str, fn());

/// Runs `model` in every order.
fn check(model: impl Fn() + Send + Sync + 'static) {
    check_within(PREEMPTIONS, model);
}

/// Runs `model` in every order with so many interruptions, if the environment does not say how many.
fn check_within(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    // Steps of one run, before it is taken for endless: filling a queue of staged packets takes more than the usual thousand.
    builder.max_branches = 4000;
    builder.check(model);
}

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let all = [
        appointments::MODELS,
        counters::MODELS,
        indices::MODELS,
        lane::MODELS,
        sessions::MODELS,
        signals::MODELS,
        staged::MODELS,
    ];
    let all: Vec<Model> = all.concat();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let models: Vec<Model> = all.iter().filter(|(name, _)| is_wanted(name)).copied().collect();
    println!("\nrunning {} tests", models.len());
    let (next, failed, start) = (Mutex::new(models.iter()), Mutex::new(Vec::new()), Instant::now());
    let run_some = || {
        loop {
            let Some((name, model)) = next.lock().unwrap_or_else(PoisonError::into_inner).next() else { return };
            let outcome = if catch_unwind(AssertUnwindSafe(model)).is_ok() {
                "ok"
            } else {
                failed.lock().unwrap_or_else(PoisonError::into_inner).push(*name);
                "FAILED"
            };
            println!("test {name} ... {outcome}");
        }
    };
    std::thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(run_some))));
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        models.len() - failed.len(),
        failed.len(),
        all.len() - models.len(),
        start.elapsed().as_secs_f32()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
