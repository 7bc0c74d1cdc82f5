//! Every op, forward and backward, at SmolLM2-135M's shapes, against what the hardware must at least take for it.
//!
//! ```text
//! cargo bench --bench ops                # all; criterion's options and filters work: `cargo bench --bench ops -- attention`
//! ```
//!
//! Criterion measures and compares with the last run; the table at the end has each op's share of its floor, `target/bench/ops.json` the same.
//! `../README.md` says more.

mod cases;
mod floors;
#[path = "../step/machine.rs"]
mod machine;
#[path = "../step/random.rs"]
mod random;
#[path = "../step/shapes.rs"]
mod shapes;

use anyhow::Result;
use cases::Case;
use criterion::Criterion;
use floors::{ProductRates, traffic_seconds};
use mpo::config::ComputeDtype;
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// An op that was measured. Floors that it does not have are 0.
#[derive(Serialize)]
struct Row {
    name: String,
    seconds: f64,
    byte_floor_seconds: f64,
    flops: f64,
    #[serde(skip)]
    dtype: ComputeDtype,
}

fn main() -> Result<()> {
    let mut machine = machine::description(None);
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1000))
        .configure_from_args();
    let mut rates = ProductRates::default();
    let mut rows = Vec::new();
    for family in cases::FAMILIES {
        for mut case in family()? {
            let mut samples = measure(&mut criterion, &mut case)?;
            // Empty where a filter leaves the case out.
            if !samples.is_empty() {
                rates.measure()?;
                let byte_floor_seconds = traffic_seconds(&case.traffic);
                rows.push(Row { name: case.name, seconds: median(&mut samples), byte_floor_seconds, flops: case.flops, dtype: case.dtype });
            }
        }
    }
    criterion.final_summary();
    if !rows.is_empty() {
        print_table(&rows, &rates);
        machine::note_end(&mut machine);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench/ops.json");
        let all = serde_json::json!({ "machine": machine, "product_rates": rates, "ops": rows });
        mpo::files::write_atomically(&path, format!("{all:#}\n").as_bytes())?;
    }
    Ok(())
}

/// Seconds of one run, from each of criterion's samples.
fn measure(criterion: &mut Criterion, case: &mut Case) -> Result<Vec<f64>> {
    let mut samples = Vec::new();
    let mut outcome = Ok(());
    criterion.bench_function(&case.name, |bencher| {
        // The first run touches memory that no later one finds untouched.
        if outcome.is_ok() {
            outcome = (case.run)();
        }
        bencher.iter_custom(|n| {
            let start = Instant::now();
            for _ in 0..n {
                if outcome.is_ok() {
                    outcome = (case.run)();
                }
            }
            let elapsed = start.elapsed();
            samples.push(elapsed.as_secs_f64() / n as f64);
            elapsed
        })
    });
    outcome.map(|()| samples).map_err(|error| error.context(case.name.clone()))
}

/// Times, both floors, and the share of the larger one.
fn print_table(rows: &[Row], rates: &ProductRates) {
    println!("\nlarge products: {:.0} GFLOP/s in f32, {:.0} in bf16", 1e-9 * rates.f32, 1e-9 * rates.bf16);
    println!("{:<44} {:>12} {:>12} {:>12} {:>8}", "op", "time", "byte floor", "FLOP floor", "share");
    let show = |seconds: f64| if seconds > 0.0 { format!("{:.3} ms", 1e3 * seconds) } else { String::new() };
    for row in rows {
        let flop_floor = rates.seconds(row.flops, row.dtype);
        let share = row.byte_floor_seconds.max(flop_floor) / row.seconds;
        let times = [row.seconds, row.byte_floor_seconds, flop_floor].map(show);
        println!("{:<44} {:>12} {:>12} {:>12} {:>6.0} %", row.name, times[0], times[1], times[2], 100.0 * share);
    }
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
