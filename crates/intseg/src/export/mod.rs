//! Taking a model to other runtimes.

pub mod c;
