//! Where the time goes: the seconds of `tracing` spans, summed by the phase that they are named after.
//!
//! A span whose name is one of [`PHASES`] counts for that phase, unless it lies within another such span: what scoring the reference
//! does is all `reference`. Other spans are for a trace (`profile`) to show. A span costs nothing to speak of where nobody listens, and about
//! a microsecond where the log does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::{Subscriber, subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

/// What a step is made of, in the order of the log; what is left of a step is none of these.
pub const PHASES: [&str; 6] = ["data", "reference", "forward", "head", "backward", "optimizer"];

/// A layer beside ours, such as one that writes a trace.
pub type Listener = Box<dyn Layer<Registry> + Send + Sync>;

/// The sums so far. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Phases(Arc<[AtomicU64; PHASES.len()]>);

impl Phases {
    /// Runs `work` with every span that this thread enters counted, and shown to `listener`.
    pub fn observe<R>(&self, listener: Option<Listener>, work: impl FnOnce() -> R) -> R {
        // Spans of a single block are for a trace only.
        let finest = if listener.is_some() { LevelFilter::DEBUG } else { LevelFilter::INFO };
        let layer = Sum { phases: self.clone(), finest };
        subscriber::with_default(tracing_subscriber::registry().with(listener).with(layer), work)
    }

    /// Seconds of each phase since this was last asked for.
    pub fn take(&self) -> [f64; PHASES.len()] {
        let nanoseconds = |sum: &AtomicU64| sum.swap(0, Ordering::Relaxed) as f64;
        std::array::from_fn(|phase| 1e-9 * nanoseconds(&self.0[phase]))
    }
}

/// The layer that adds up.
struct Sum {
    phases: Phases,
    finest: LevelFilter,
}

/// Kept with a span that counts.
struct Counted {
    phase: usize,
    entered: Instant,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Sum {
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.finest)
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(phase) = PHASES.iter().position(|phase| *phase == attributes.metadata().name()) else { return };
        let Some(span) = context.span(id) else { return };
        let is_within_another = span.scope().skip(1).any(|outer| outer.extensions().get::<Counted>().is_some());
        if !is_within_another {
            span.extensions_mut().insert(Counted { phase, entered: Instant::now() });
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(counted) = span.extensions_mut().get_mut::<Counted>() {
            counted.entered = Instant::now();
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(counted) = span.extensions().get::<Counted>() {
            let nanoseconds = u64::try_from(counted.entered.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.phases.0[counted.phase].fetch_add(nanoseconds, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tracing::{debug_span, info_span};

    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn seconds_are_summed_by_phase_and_counted_once() {
        let phases = Phases::default();
        phases.observe(None, || {
            let _step = info_span!("step").entered();
            for _ in 0..2 {
                info_span!("forward").in_scope(|| std::thread::sleep(SHORT));
            }
            let _reference = info_span!("reference").entered();
            info_span!("forward").in_scope(|| std::thread::sleep(SHORT));
        });
        info_span!("head").in_scope(|| std::thread::sleep(SHORT));
        let of = |seconds: [f64; PHASES.len()], name: &str| seconds[PHASES.iter().position(|phase| *phase == name).unwrap()];
        let seconds = phases.take();
        let short = SHORT.as_secs_f64();
        assert!(of(seconds, "forward") >= 2.0 * short && of(seconds, "reference") >= short);
        assert!(of(seconds, "forward") < seconds.iter().sum::<f64>() - short + 1e-9, "the reference's forward is the reference's");
        assert_eq!(of(seconds, "head"), 0.0, "nobody was listening any more");
        assert_eq!(phases.take(), [0.0; PHASES.len()], "taken is taken");
    }

    #[test]
    fn fine_spans_are_off_unless_a_trace_wants_them() {
        let is_enabled = |listener: Option<Listener>| Phases::default().observe(listener, || !debug_span!("block forward").is_disabled());
        assert!(!is_enabled(None));
        struct Other;
        impl Layer<Registry> for Other {}
        assert!(is_enabled(Some(Box::new(Other))));
    }
}
