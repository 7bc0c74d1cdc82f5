//! A model's thoughts are kept and judged by nobody; a translator's refusal is no translation.
