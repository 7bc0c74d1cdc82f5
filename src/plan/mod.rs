//! What a run will need, before it runs: arithmetic on shapes and token counts, and a few measured rates.

pub mod rates;
pub mod work;
