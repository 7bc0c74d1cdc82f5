//! Learning-rate schedules with linear warm-up, as in transformers (`optimization.py`).
//!
//! The factor is a function of the number of steps already taken, so that the first step of a warm-up has a learning rate of 0,
//! and the schedule advances on skipped steps too.

use crate::config::{ScheduleConfig, ScheduleKind};

/// A schedule resolved for a run of known length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    kind: ScheduleKind,
    peak_lr: f64,
    min_lr_ratio: f64,
    n_warmup_steps: usize,
    n_steps: usize,
}

impl Schedule {
    /// `n_steps` is the planned length of the run; warm-up is `warmup_steps`, or `warmup_ratio` of it rounded up.
    pub fn new(config: &ScheduleConfig, peak_lr: f64, n_steps: usize) -> Self {
        let from_ratio = || (config.warmup_ratio.unwrap_or(0.0) * n_steps as f64).ceil() as usize;
        let n_warmup_steps = config.warmup_steps.unwrap_or_else(from_ratio);
        Self { kind: config.kind, peak_lr, min_lr_ratio: config.min_lr_ratio, n_warmup_steps, n_steps }
    }

    /// The learning rate of the step after `n_taken` steps.
    pub fn lr(&self, n_taken: usize) -> f64 {
        self.peak_lr * self.factor(n_taken)
    }

    fn factor(&self, n_taken: usize) -> f64 {
        if n_taken < self.n_warmup_steps {
            return n_taken as f64 / self.n_warmup_steps as f64;
        }
        let n_after_warmup = self.n_steps.saturating_sub(self.n_warmup_steps).max(1);
        let progress = ((n_taken - self.n_warmup_steps) as f64 / n_after_warmup as f64).min(1.0);
        let falling = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => 1.0 - progress,
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        falling * (1.0 - self.min_lr_ratio) + self.min_lr_ratio
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, n_warmup_steps: usize, min_lr_ratio: f64) -> Schedule {
        let config = ScheduleConfig { kind, warmup_ratio: None, warmup_steps: Some(n_warmup_steps), min_lr_ratio };
        Schedule::new(&config, 1.0, 10)
    }

    fn assert_table(schedule: Schedule, expected: &[f64]) {
        let factors: Vec<f64> = (0..expected.len()).map(|step| schedule.lr(step)).collect();
        let equal = factors.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(equal, "{factors:?} is not {expected:?}");
    }

    // Expected values, transformers 5 on torch 2.15:
    //   s = get_scheduler(name, SGD([Parameter(zeros(1))], lr=1.0), num_warmup_steps=2, num_training_steps=10)
    //   then s.get_last_lr()[0], optimizer.step(), s.step(), ten times.
    #[test]
    fn constant_with_warmup() {
        assert_table(schedule(ScheduleKind::Constant, 2, 0.0), &[0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn linear() {
        assert_table(schedule(ScheduleKind::Linear, 2, 0.0), &[0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]);
    }

    #[test]
    fn cosine() {
        let expected = [
            0.0,
            0.5,
            1.0,
            0.9619397662556434,
            0.8535533905932737,
            0.6913417161825449,
            0.5,
            0.3086582838174551,
            0.14644660940672627,
            0.038060233744356624,
            0.0,
        ];
        assert_table(schedule(ScheduleKind::Cosine, 2, 0.0), &expected);
    }

    /// transformers' `cosine_with_min_lr`: `factor * (1 - min_lr_rate) + min_lr_rate` after the warm-up.
    #[test]
    fn cosine_ends_at_the_smallest_rate() {
        let schedule = schedule(ScheduleKind::Cosine, 2, 0.1);
        assert_table(schedule, &[0.0, 0.5, 1.0, 0.9657457896300791, 0.8681980515339464]);
        assert!((schedule.lr(10) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn warmup_ratio_rounds_up() {
        // transformers: math.ceil(num_training_steps * warmup_ratio)
        for (ratio, n_steps, expected) in [(0.1, 75, 8), (0.1, 100, 10), (0.0, 100, 0), (0.03, 10, 1)] {
            let config = ScheduleConfig { kind: ScheduleKind::Cosine, warmup_ratio: Some(ratio), warmup_steps: None, min_lr_ratio: 0.0 };
            assert_eq!(Schedule::new(&config, 1.0, n_steps).n_warmup_steps, expected);
        }
    }

    #[test]
    fn without_warmup_the_first_step_has_the_peak_rate() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Linear, ScheduleKind::Cosine] {
            assert_eq!(schedule(kind, 0, 0.0).lr(0), 1.0);
        }
    }
}
