//! Work on what a stranger wrote, confined: a thread with a deep stack, an allowance of memory, and so much of a processor's time.
//!
//! Inside a template engine a single instruction may copy a text to twice its length or compare what never ends, and nobody asks before it does. So
//! the limits stand outside: a thread that passes one of them is given up, with what it holds, and its work is an error. That happens once to a
//! checkpoint, whose templates are not rendered again.

use crate::allocator::allowance;
use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Of one thread's stack: only what is touched is memory. Values as deep as the allowance of steps can make them are shown and freed within it.
const STACK_BYTES: usize = 512 << 20;
/// How often a wait looks at the limits.
const LOOK: Duration = Duration::from_millis(10);
/// What the threads are called.
const NAME: &str = "chat-template";

/// How much a piece of work may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub bytes: usize,
    /// Of a processor, not of the clock: another's load counts nothing.
    pub time: Duration,
}

/// Why a piece of work has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    Memory(usize),
    Time(Duration),
    /// It panicked, with these words.
    Panicked(String),
    /// There is no thread to do it.
    NoThread(String),
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(bytes) => write!(f, "it takes more than {} MiB of memory", bytes >> 20),
            Self::Time(time) => write!(f, "it takes more than {} s of computing", time.as_secs_f64()),
            Self::Panicked(what) => write!(f, "the template engine failed: {what}"),
            Self::NoThread(why) => write!(f, "no thread could be started to render it: {why}"),
        }
    }
}

type Job = Box<dyn FnOnce(&'static AtomicBool) + Send>;

/// A thread that does one job after another.
struct Worker {
    jobs: Sender<Job>,
    /// Set by the allocator when the job's allowance is used up.
    is_out_of_memory: &'static AtomicBool,
    clock: clock::Clock,
}

/// Those that wait for a job: as many as were ever at work at one time.
static IDLE: Mutex<Vec<Worker>> = Mutex::new(Vec::new());

/// Does `work` within `limits`.
pub fn run<T: Send + 'static>(limits: Limits, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stopped> {
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let worker = idle.map_or_else(Worker::start, Ok)?;
    let (reply, answer) = mpsc::channel();
    let job: Job = Box::new(move |spent| {
        allowance::grant(limits.bytes, spent);
        let done = catch_unwind(AssertUnwindSafe(work)).map_err(|panic| Stopped::Panicked(words(&*panic)));
        allowance::lift();
        // Nobody waits any more where the time was up.
        let _ = reply.send(done);
    });
    let began = worker.clock.now();
    worker.jobs.send(job).map_err(|_| Stopped::NoThread("it has ended".into()))?;
    loop {
        match answer.recv_timeout(LOOK) {
            Ok(done) => {
                IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
                return done;
            }
            Err(RecvTimeoutError::Disconnected) => return Err(Stopped::NoThread("it has ended".into())),
            Err(RecvTimeoutError::Timeout) if worker.is_out_of_memory.load(Ordering::Acquire) => return Err(Stopped::Memory(limits.bytes)),
            Err(RecvTimeoutError::Timeout) if worker.clock.now().saturating_sub(began) > limits.time => {
                return Err(Stopped::Time(limits.time));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

impl Worker {
    fn start() -> Result<Self, Stopped> {
        let is_out_of_memory: &'static AtomicBool = Box::leak(Box::default());
        let (jobs, queue) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        let work = move || {
            silence_panics();
            let _ = tell.send(clock::Clock::of_this_thread());
            queue.into_iter().for_each(|job| job(is_out_of_memory));
        };
        let started = thread::Builder::new().name(NAME.into()).stack_size(STACK_BYTES).spawn(work);
        started.map_err(|error| Stopped::NoThread(error.to_string()))?;
        let clock = told.recv().map_err(|_| Stopped::NoThread("it ended at once".into()))?;
        Ok(Self { jobs, is_out_of_memory, clock })
    }
}

/// A panic in such a thread becomes an error, and is not also told on the terminal.
fn silence_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if thread::current().name() != Some(NAME) {
                others(info);
            }
        }));
    });
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into())
}

#[cfg(target_os = "linux")]
mod clock {
    use std::time::Duration;

    /// The processor time of a thread, read by another.
    #[derive(Debug, Clone, Copy)]
    pub struct Clock(libc::clockid_t);

    impl Clock {
        pub fn of_this_thread() -> Self {
            let mut id = libc::CLOCK_MONOTONIC;
            // SAFETY: the thread is this one, and `id` is written before it is read. On an error it stays the clock on the wall.
            unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut id) };
            Self(id)
        }

        pub fn now(self) -> Duration {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: `time` is a timespec. A clock that is gone leaves it at 0.
            unsafe { libc::clock_gettime(self.0, &mut time) };
            Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod clock {
    use std::time::{Duration, Instant};

    /// The clock on the wall, where a thread's own cannot be read.
    #[derive(Debug, Clone, Copy)]
    pub struct Clock(Instant);

    impl Clock {
        pub fn of_this_thread() -> Self {
            Self(Instant::now())
        }

        pub fn now(self) -> Duration {
            self.0.elapsed()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { bytes: 8 << 20, time: Duration::from_secs(20) };

    #[test]
    fn work_is_done_and_its_thread_used_again() {
        assert_eq!(run(LIMITS, || vec![1u8; 4 << 20].len()), Ok(4 << 20));
        // What was given back counts as never taken.
        assert_eq!(run(LIMITS, || (0..100).map(|_| vec![1u8; 1 << 20].len()).sum::<usize>()), Ok(100 << 20));
    }

    #[test]
    fn memory_beyond_the_allowance_is_an_error_and_not_the_end() {
        assert_eq!(run(LIMITS, || "x".repeat(1 << 40).len()), Err(Stopped::Memory(8 << 20)));
        let doubling = || (0..60).fold(String::from("a"), |text, _| format!("{text}{text}")).len();
        assert_eq!(run(LIMITS, doubling), Err(Stopped::Memory(8 << 20)));
        assert_eq!(run(LIMITS, || 7), Ok(7), "the next has a thread of its own");
    }

    #[test]
    fn a_panic_is_an_error() {
        let stopped = run(LIMITS, || assert_eq!("a".repeat(2), "b", "said"));
        assert!(matches!(&stopped, Err(Stopped::Panicked(words)) if words.contains("said")), "{stopped:?}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn work_without_an_end_is_given_up() {
        let go_on: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(true)));
        let limits = Limits { time: Duration::from_millis(30), ..LIMITS };
        let endless = || {
            let mut n = 0u64;
            while go_on.load(Ordering::Relaxed) {
                n = n.wrapping_add(1);
            }
            n
        };
        let stopped = run(limits, endless);
        go_on.store(false, Ordering::Relaxed);
        assert_eq!(stopped, Err(Stopped::Time(limits.time)));
    }
}
