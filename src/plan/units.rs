//! Numbers as people read them.

/// Three digits and a unit: `1.23 TFLOP`, of a number of operations.
pub fn flop(n: f64) -> String {
    scaled(n, "FLOP")
}

/// `190 GFLOP/s`
pub fn flop_rate(n: f64) -> String {
    scaled(n, "FLOP/s")
}

/// `24.1 GB/s`
pub fn byte_rate(n: f64) -> String {
    scaled(n, "B/s")
}

/// `135 M`, of parameters and tokens; small numbers in full.
pub fn count(n: f64) -> String {
    if n < 10_000.0 { format!("{n:.0}") } else { scaled(n, "") }
}

/// `0.21 s`, `5 min 20 s`, `2 h 13 min`
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match seconds {
        s if s < 10.0 => format!("{s:.2} s"),
        s if s < 60.0 => format!("{s:.0} s"),
        s if s < 3600.0 => format!("{} min {} s", whole / 60, whole % 60),
        s if s < 48.0 * 3600.0 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{:.1} days", seconds / 86400.0),
    }
}

fn scaled(n: f64, unit: &str) -> String {
    const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let (mut n, mut prefix) = (n, 0);
    while n >= 999.5 && prefix + 1 < PREFIXES.len() {
        n /= 1000.0;
        prefix += 1;
    }
    let digits = if n >= 99.95 { 0 } else { 1 + usize::from(n < 9.995) };
    format!("{n:.digits$} {}{unit}", PREFIXES[prefix]).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        assert_eq!(flop(1.2345e12), "1.23 TFLOP");
        assert_eq!(flop_rate(1.899e11), "190 GFLOP/s");
        assert_eq!(flop_rate(9.9951e11), "1.00 TFLOP/s");
        assert_eq!(byte_rate(2.412e10), "24.1 GB/s");
        assert_eq!((count(9_999.0), count(134_515_008.0)), ("9999".into(), "135 M".into()));
    }

    #[test]
    fn times_from_a_step_to_a_week() {
        let said = [0.214, 9.99, 42.4, 320.0, 8_000.0, 600_000.0].map(duration);
        assert_eq!(said, ["0.21 s", "9.99 s", "42 s", "5 min 20 s", "2 h 13 min", "6.9 days"]);
    }
}
