//! Every op, forward and backward, at SmolLM2-135M's shapes, against what the hardware must at least take for it.
//!
//! ```text
//! cargo bench --bench ops                # all; criterion's options and filters work: `cargo bench --bench ops -- attention`
//! ```
//!
//! Criterion measures and compares with the last run; the table at the end has each op's share of its floor. `../README.md` says more.

mod cases;
mod floors;
#[path = "../step/random.rs"]
mod random;
#[path = "../step/shapes.rs"]
mod shapes;

use anyhow::Result;
use cases::Case;
use criterion::Criterion;
use floors::Floors;
use std::time::{Duration, Instant};

fn main() -> Result<()> {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1000))
        .configure_from_args();
    let mut rows = Vec::new();
    let mut floors = None;
    for family in cases::FAMILIES {
        for mut case in family()? {
            let mut samples = Vec::new();
            let mut failure = None;
            criterion.bench_function(&case.name, |bencher| {
                bencher.iter_custom(|n| {
                    let start = Instant::now();
                    for _ in 0..n {
                        failure = (case.run)().err().or(failure.take());
                    }
                    let elapsed = start.elapsed();
                    samples.push(elapsed.as_secs_f64() / n as f64);
                    elapsed
                })
            });
            if let Some(failure) = failure {
                return Err(failure.context(case.name));
            }
            // Empty where a filter leaves the case out.
            if !samples.is_empty() {
                let floors = match &mut floors {
                    Some(floors) => floors,
                    none => none.insert(Floors::measure()?),
                };
                rows.push(row(&case, median(&mut samples), floors));
            }
        }
    }
    criterion.final_summary();
    if let Some(floors) = floors {
        println!("\nlarge products: {:.0} GFLOP/s in f32, {:.0} in bf16", 1e-9 * floors.f32_flops, 1e-9 * floors.bf16_flops);
        println!("{:<44} {:>10} {:>10} {:>10} {:>7}", "op", "time", "bytes", "FLOPs", "share");
        rows.iter().for_each(|row| println!("{row}"));
    }
    Ok(())
}

/// Time, both floors, and the share of the larger one.
fn row(case: &Case, seconds: f64, floors: &Floors) -> String {
    let (bytes, flops) = (floors.traffic_seconds(&case.traffic), floors.flop_seconds(case.flops, case.dtype));
    let show = |seconds: f64| if seconds > 0.0 { format!("{:.3} ms", 1e3 * seconds) } else { String::new() };
    let share = bytes.max(flops) / seconds;
    format!("{:<44} {:>10} {:>10} {:>10} {:>5.0} %", case.name, show(seconds), show(bytes), show(flops), 100.0 * share)
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
