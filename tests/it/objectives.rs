//! Every loss: its values beside TRL's, through the model however a batch is cut, and through the command line.

mod runs;
mod step;
mod values;
