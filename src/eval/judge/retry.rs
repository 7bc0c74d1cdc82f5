//! When to ask again: exponential waits with jitter, the server's `Retry-After`, one pause for all threads, and an ear for Ctrl-C.

use super::gate::{Unparsed, Why};
use super::{Blame, Failure, ShouldStop, Suspect};
use anyhow::anyhow;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A server that asks for a longer wait is not waited for: a quota of hours is better met by running again.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// While waiting, Ctrl-C is noticed within this time.
const TICK: Duration = Duration::from_millis(50);

/// How often and how fast.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Requests for one question, the first included.
    pub attempts: u32,
    /// Wait after the first failure; doubled each time.
    pub delay: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self { attempts: 6, delay: Duration::from_secs(1) }
    }
}

/// What came of one attempt that brought no reply.
#[derive(Debug)]
pub enum Setback {
    /// May pass; the server may say when.
    Again { reason: String, after: Option<Duration> },
    /// Nobody is there: may pass too, but no other question will fare better meanwhile.
    Unreachable(String),
    /// Seldom passes: one more try, soon.
    Once(Failure),
    /// Will not.
    Final(Failure),
}

/// Asks until there is a reply; shared by all threads that ask one server.
#[derive(Debug, Default)]
pub struct Retries {
    policy: Policy,
    /// The server asked for quiet until then.
    quiet_until: Mutex<Option<Instant>>,
}

impl Retries {
    pub fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// # Errors
    ///
    /// A final setback, the user's stop, or, after the last attempt, a suspect endpoint with the last reason.
    pub fn run<T>(&self, whom: &str, should_stop: ShouldStop<'_>, mut attempt: impl FnMut() -> Result<T, Setback>) -> Result<T, Failure> {
        let (mut n_failed, mut n_once) = (0, 0);
        loop {
            self.wait_for_quiet(should_stop)?;
            let (reason, after, is_there) = match attempt() {
                Ok(reply) => return Ok(reply),
                Err(Setback::Final(failure)) => return Err(failure),
                Err(Setback::Once(failure)) if n_once > 0 => return Err(failure),
                Err(Setback::Once(_)) => {
                    n_once += 1;
                    self.sleep_until(Instant::now() + self.policy.delay / 4, should_stop)?;
                    continue;
                }
                Err(Setback::Again { reason, after }) => (reason, after, true),
                Err(Setback::Unreachable(reason)) => (reason, None, false),
            };
            n_failed += 1;
            if n_failed >= self.policy.attempts {
                let error = format!(
                    "{whom} gave no reply in {n_failed} attempts: {reason}. What is judged so far is kept; run the same command again to go on"
                );
                if !is_there {
                    return Err(Failure::Fatal(anyhow!(error)));
                }
                let unparsed = Unparsed::new(Why::NoReply, format!("none in {n_failed} attempts: {reason}"));
                return Err(Failure::Suspect(Suspect { unparsed, blame: Blame::Endpoint, error }));
            }
            if let Some(after) = after.filter(|after| *after > LONGEST_WAIT) {
                return Err(Failure::Fatal(anyhow!(
                    "{whom} asks to wait {} seconds ({reason}). What is judged so far is kept; run the same command again then",
                    after.as_secs()
                )));
            }
            if let Some(after) = after {
                self.ask_for_quiet(after);
            }
            // The wait grows with this question's own failures even where the server names a shorter one.
            self.sleep_until(Instant::now() + jittered(self.policy.delay, n_failed - 1), should_stop)?;
        }
    }

    fn ask_for_quiet(&self, wait: Duration) {
        let mut until = self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = (*until).max(Some(Instant::now() + wait));
    }

    fn wait_for_quiet(&self, should_stop: ShouldStop<'_>) -> Result<(), Failure> {
        let until = *self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleep_until(until.unwrap_or_else(Instant::now), should_stop)
    }

    fn sleep_until(&self, end: Instant, should_stop: ShouldStop<'_>) -> Result<(), Failure> {
        loop {
            if should_stop() {
                return Err(Failure::Stopped);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
    }
}

/// Between half and the whole of `delay` times two to the `n`, at most [`LONGEST_WAIT`]: threads that failed together do not return
/// together. How long somebody waits is in no result, so this may be random.
fn jittered(delay: Duration, n: u32) -> Duration {
    let whole = delay.saturating_mul(1 << n.min(16)).min(LONGEST_WAIT);
    let share = (RandomState::new().hash_one(n) >> 11) as f64 / (1u64 << 53) as f64;
    whole.mul_f64(0.5 + 0.5 * share)
}

/// `Retry-After` in seconds, and OpenAI's `retry-after-ms`. A date is not read: the wait that grows by itself serves as well.
pub fn retry_after(header: impl Fn(&str) -> Option<String>) -> Option<Duration> {
    let number = |name: &str| header(name)?.trim().parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0);
    let seconds = number("retry-after-ms").map(|ms| ms / 1000.0).or_else(|| number("retry-after"))?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn fast(attempts: u32) -> Retries {
        Retries::new(Policy { attempts, delay: Duration::from_millis(1) })
    }

    fn again(after: Option<Duration>) -> Setback {
        Setback::Again { reason: "status 429".into(), after }
    }

    #[test]
    fn waits_grow_and_vary() {
        let second = Duration::from_secs(1);
        for n in 0..6 {
            let waits: Vec<Duration> = (0..50).map(|_| jittered(second, n)).collect();
            assert!(waits.iter().all(|wait| *wait >= second * (1 << n) / 2 && *wait <= second * (1 << n)), "{waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]));
        }
        assert!(jittered(second, 40) <= LONGEST_WAIT);
    }

    #[test]
    fn the_server_says_how_long() {
        let header = |set: &'static str, to: &'static str| retry_after(move |name| (name == set).then(|| to.to_owned()));
        assert_eq!(header("retry-after", " 7 "), Some(Duration::from_secs(7)));
        assert_eq!(header("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        for text in ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "NaN", "1e300", ""] {
            assert_eq!(header("retry-after", text), None, "{text}");
        }
    }

    #[test]
    fn every_thread_keeps_quiet_when_one_is_asked_to() {
        let retries = fast(2);
        let wait = Duration::from_millis(120);
        let mut first = true;
        let started = Instant::now();
        let reply = retries.run("j", &|| false, || if std::mem::take(&mut first) { Err(again(Some(wait))) } else { Ok(started.elapsed()) });
        assert!(reply.unwrap() >= wait);
        retries.ask_for_quiet(wait);
        let started = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| retries.run("j", &|| false, || Ok(())).unwrap());
        });
        assert!(started.elapsed() >= wait);
    }

    #[test]
    fn attempts_end() {
        let n = AtomicU32::new(0);
        let failing = || -> Result<(), Setback> {
            n.fetch_add(1, Ordering::SeqCst);
            Err(again(None))
        };
        let Err(Failure::Suspect(Suspect { error: text, blame: Blame::Endpoint, .. })) = fast(3).run("`openai:m`", &|| false, failing)
        else {
            panic!("no error")
        };
        assert_eq!(n.load(Ordering::SeqCst), 3);
        assert!(text.contains("`openai:m` gave no reply in 3 attempts: status 429") && text.contains("again to go on"), "{text}");
    }

    #[test]
    fn what_seldom_passes_is_asked_twice() {
        for n_failing in [1, 2] {
            let n = AtomicU32::new(0);
            let attempt = || match n.fetch_add(1, Ordering::SeqCst) {
                n if n < n_failing => Err(Setback::Once(Failure::Declined(Unparsed::new(Why::Filtered, "no choice")))),
                _ => Ok(()),
            };
            let result = fast(6).run("j", &|| false, attempt);
            assert_eq!((result.is_ok(), n.load(Ordering::SeqCst)), (n_failing == 1, 2));
        }
    }

    #[test]
    fn a_long_wait_ends_the_run_and_a_stop_ends_a_wait() {
        let hours = || -> Result<(), Setback> { Err(again(Some(Duration::from_secs(7200)))) };
        let Err(Failure::Fatal(error)) = fast(6).run("j", &|| false, hours) else { panic!("no error") };
        assert!(error.to_string().contains("7200 seconds"), "{error}");
        let minute = || -> Result<(), Setback> { Err(again(Some(Duration::from_secs(60)))) };
        let started = Instant::now();
        let stop_soon = || started.elapsed() > Duration::from_millis(30);
        assert!(matches!(fast(6).run("j", &stop_soon, minute), Err(Failure::Stopped)));
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
