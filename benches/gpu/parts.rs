//! What is measured: shapes, batches, and who does the work.

use crate::Options;
use crate::job::{Engine, Job, Row};
use crate::rows::Lengths;
use crate::shapes;
use clap::ValueEnum;
use mpo::config::ComputeDtype;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// A model that any CPU trains, against PyTorch: whether the program itself works
    Tiny,
    /// SmolLM2's shape, sequences of 512 tokens, against PyTorch
    #[value(name = "135m")]
    M135,
    /// TinyLlama's shape, sequences of 1,024 tokens, against PyTorch
    #[value(name = "1.1b")]
    B1,
    /// The same where the rows of a batch share their dominant pair, which runs once: ours only
    #[value(name = "1.1b-grouped")]
    Grouped,
    /// Llama 3.1's shape, all of it, sequences of 1,024 tokens; stochastic rounding, 8-bit moments, activation checkpointing
    #[value(name = "8b")]
    B8,
    /// The same, each block updated within the backward: no gradients of the whole model, no clipping
    #[value(name = "8b-in-backward")]
    InBackward,
    /// The same as `8b` with an adapter of rank 16 in the place of all weights
    #[value(name = "8b-lora")]
    Lora,
    /// One row of sequences of 512 tokens with that adapter: what a card of 24 GB would have to hold
    #[value(name = "8b-lora-row")]
    LoraRow,
    /// The head alone: vocabulary 128,256, width 4,096, 8,192 response tokens
    Head,
}

/// A part's measurements, made for one number of rows after the other until everything fits into the card.
pub struct Setup {
    pub engines: &'static [Engine],
    /// Rows of a batch, of 4 sequences each, the largest first.
    pub rows: &'static [usize],
    shape: &'static str,
    row: Row,
    grouped: bool,
    checkpointing: bool,
    small_state: bool,
    in_backward: bool,
}

const OURS: &[Engine] = &[Engine::Mpo];
const WITH_PEERS: &[Engine] = &[Engine::Mpo, Engine::ReleasedSdpa, Engine::Lean, Engine::LeanCheckpointing];

impl Part {
    pub const ALL: [Self; 8] = [Self::M135, Self::B1, Self::Grouped, Self::B8, Self::InBackward, Self::Lora, Self::LoraRow, Self::Head];

    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub fn setup(self) -> Setup {
        let small = |shape, rows, length| Setup {
            engines: WITH_PEERS,
            rows,
            shape,
            row: Row::of_length(length),
            grouped: false,
            checkpointing: false,
            small_state: false,
            in_backward: false,
        };
        let large = |rows, length| Setup { engines: OURS, checkpointing: true, small_state: true, ..small(shapes::B8, rows, length) };
        let lora = |rows, length| Setup { engines: &[Engine::MpoLora], small_state: false, ..large(rows, length) };
        match self {
            Self::Tiny => small(shapes::TINY, &[2], 64),
            Self::M135 => small(shapes::M135, &[8, 4, 2, 1], 512),
            Self::B1 => small(shapes::B1, &[4, 2, 1], 1024),
            Self::Grouped => Setup { engines: OURS, grouped: true, ..small(shapes::B1, &[4, 2], 1024) },
            Self::B8 => large(&[8, 4, 2, 1], 1024),
            Self::InBackward => Setup { in_backward: true, ..large(&[16, 8, 4, 2, 1], 1024) },
            Self::Lora => lora(&[8, 4, 2, 1], 1024),
            Self::LoraRow => lora(&[1], 512),
            Self::Head => {
                let lengths = Lengths { prompt: 1, chosen: 4096, rejected: 4096 };
                Setup { engines: &[Engine::Head], row: Row { target: lengths, ..Row::of_length(0) }, ..large(&[1], 0) }
            }
        }
    }
}

impl Setup {
    pub fn job(&self, engine: Engine, n_rows: usize, options: &Options) -> Job {
        let row = |index| Row { pair: if self.grouped { 0 } else { index }, ..self.row.clone() };
        Job {
            engine,
            device: options.device.clone(),
            config: shapes::config(self.shape),
            dtype: ComputeDtype::Bf16,
            weights: "bf16".into(),
            rows: (0..n_rows).map(row).collect(),
            rows_per_step: n_rows,
            grouped: self.grouped,
            checkpointing: self.checkpointing,
            small_state: self.small_state,
            in_backward: self.in_backward,
            warm_up: 2,
            passes: options.steps.max(1),
        }
    }
}

/// The card's own matrix rate.
pub fn products(options: &Options) -> Job {
    Job { engine: Engine::Products, ..Part::Tiny.setup().job(Engine::Products, 1, options) }
}
